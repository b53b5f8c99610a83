"""Every example in README and in the manual gives the response that the document shows below it."""

import base64
import contextlib
import io
import json
import re
import subprocess

import numpy as np
import pytest

from tests import documents

# Two builds of torch, or two kinds of CPU, may round differently.
TOLERANCE = 1e-5


def assert_like(got, shown, where="answer"):
    """Assert that `got` equals `shown`, where "..." ends a shortened list, and times and measured values may differ."""
    if isinstance(shown, dict):
        assert got.keys() == shown.keys(), where
        for key in shown.keys() - {"created", "value"}:
            assert_like(got[key], shown[key], f"{where}.{key}")
        assert all(isinstance(got[key], type(shown[key])) for key in shown.keys() & {"created", "value"})
    elif isinstance(shown, list):
        if shown and shown[-1] == "...":
            shown, rest = shown[:-1], got[len(shown) - 1 :]
            assert len(got) == 384
            assert all(isinstance(number, float) for number in rest)
            got = got[: len(shown)]
        assert len(got) == len(shown), where
        for index, pair in enumerate(zip(got, shown, strict=True)):
            assert_like(*pair, f"{where}[{index}]")
    elif isinstance(shown, float):
        assert got == pytest.approx(shown, abs=TOLERANCE), where
    elif where.endswith(".embedding"):
        decoded = [np.frombuffer(base64.b64decode(text), "<f4") for text in (got, shown)]
        np.testing.assert_allclose(*decoded, atol=TOLERANCE)
    else:
        assert got == shown, where


@pytest.mark.parametrize(("command", "shown"), documents.curl_examples(), ids=lambda text: text.splitlines()[0][:60])
def test_each_curl_line_gives_the_answer_shown(server, command, shown):
    assert "http://127.0.0.1:8000" in command
    here = command.replace("http://127.0.0.1:8000", server.url).replace("curl ", "curl --silent --fail-with-body ", 1)
    got = json.loads(subprocess.run(here, shell=True, capture_output=True, text=True, check=False).stdout)
    assert_like(got, json.loads(shown.replace(", ...]", ', "..."]')))


def test_every_curl_line_has_an_answer_and_every_endpoint_a_curl_line(server):
    text = documents.text()
    assert len(documents.curl_examples()) == text.count("\ncurl ")
    asked = " ".join(command for command, _ in documents.curl_examples())
    endpoints = re.findall(r"(?:GET|POST) (/[\w/]*)", " ".join(re.findall(r"^### .*$", text, re.MULTILINE)))
    assert "/v1/embeddings" in endpoints
    for path in endpoints:
        assert f"8000{path}" in asked


@pytest.mark.parametrize("example", documents.blocks("python"))
def test_each_python_example_runs(server, example):
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(example.replace("http://127.0.0.1:8000", server.url), names)
    names["client"].close()
    assert printed.getvalue() == "384\n"
