"""k6_test.js: a real k6 against the real service, and against servers with faults that the service does not have."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from tests.server.conftest import ROOT

SCRIPT = ROOT / "k6_test.js"
K6 = Path(sys.executable).with_name("k6")
THRESHOLDS_BROKEN = 99  # k6's exit code for broken thresholds

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(not K6.exists(), reason="the package k6 carries k6 for Linux only"),
]


@pytest.fixture(scope="module")
def server(_launch):
    """The service behind a real Gunicorn; its key is `right`."""
    return _launch(WORKERS="1", API_KEY_SECRET="right")


def clean_environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}


@dataclasses.dataclass(frozen=True)
class Run:
    """The outcome of a k6 run: its exit code, its numbers by metric, and its output."""

    code: int
    metrics: dict[str, dict[str, Any]]
    output: str


@pytest.fixture
def k6(tmp_path: Path) -> Callable[..., Run]:
    """Return a function that runs the script against an address, by default for half a second."""

    def run(url: str, *, script: Path = SCRIPT, **environment: str) -> Run:
        told = {"BASE_URL": url, "DURATION_S": "0.5", "MAX_VUS": "2", "BATCH_SIZE": "3", **environment}
        # k6 opens no REST API, and sends no usage report.
        command = [K6, "run", "--quiet", "--address=", "--no-usage-report", "--summary-export=summary.json", script]
        done = subprocess.run(
            command, cwd=tmp_path, env=clean_environment() | told, capture_output=True, text=True, check=False
        )
        metrics = json.loads((tmp_path / "summary.json").read_text())["metrics"]
        return Run(done.returncode, metrics, done.stdout + done.stderr)

    return run


def test_a_run_against_the_service_passes_and_reports_its_metrics(k6, server):
    run = k6(server.url, API_TOKEN="right", DURATION_S="3")

    assert run.code == 0, run.output
    assert run.metrics["single_latency"]["count"] > 0
    assert run.metrics["batch_latency"]["count"] > 0
    assert run.metrics["errors"]["value"] == 0
    for name in ("single_latency", "batch_latency", "errors"):
        assert f"{name}.." in run.output


def test_a_wrong_token_fails_the_run(k6, server):
    run = k6(server.url, API_TOKEN="wrong")

    assert run.code == THRESHOLDS_BROKEN, run.output
    assert run.metrics["errors"]["value"] == 1
    assert run.metrics["errors"]["passes"] > 0


class Stub(ThreadingHTTPServer):
    """Answers every request with `answer`, and keeps the requests.

    Args:
        answer: Returns the body of the response for a number of texts.
    """

    daemon_threads = False  # closing waits for the connections, so that no thread outlives its test

    def __init__(self, answer: Callable[[int], str]) -> None:
        super().__init__(("127.0.0.1", 0), _StubHandler)
        self.answer = answer
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.inputs: list[Any] = []
        self.authorizations: set[str | None] = set()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Ignore the error, because the test has clients that stop waiting."""


class _StubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        self.server.inputs.append(texts)
        self.server.authorizations.add(self.headers["Authorization"])
        body = self.server.answer(1 if isinstance(texts, str) else len(texts)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def vectors(n_vectors: int, component: float | None = 0.5) -> str:
    return json.dumps({"data": [{"embedding": [0.1, component]}] * n_vectors})


def test_single_texts_and_batches_are_sent_no_text_twice_and_no_placeholder_as_a_token(k6):
    with Stub(vectors) as stub:
        run = k6(stub.url)

    texts = [text for sent in stub.inputs for text in ([sent] if isinstance(sent, str) else sent)]
    assert run.code == 0, run.output
    assert {len(sent) for sent in stub.inputs if isinstance(sent, list)} == {3}
    assert any(isinstance(sent, str) for sent in stub.inputs)
    assert len(set(texts)) == len(texts)
    assert stub.authorizations == {None}


def test_a_token_that_replaced_the_placeholder_everywhere_in_the_file_is_sent(k6, tmp_path):
    script = tmp_path / "edited.js"
    script.write_text(SCRIPT.read_text().replace("YOUR_BEARER_TOKEN_HERE", "mine"))

    with Stub(vectors) as stub:
        k6(stub.url, script=script)

    assert stub.authorizations == {"Bearer mine"}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda n_texts: vectors(n_texts - 1), id="a vector too few"),
        pytest.param(lambda n_texts: vectors(n_texts, component=None), id="null in a vector"),
        pytest.param(lambda n_texts: "<p>hello</p>", id="no JSON"),
    ],
)
def test_answers_that_are_no_vectors_fail_the_run(k6, answer):
    with Stub(answer) as stub:
        run = k6(stub.url)

    assert run.code == THRESHOLDS_BROKEN, run.output
    assert run.metrics["errors"]["value"] == 1


def test_a_server_that_never_answers_fails_the_run(k6):
    released = threading.Event()

    def hang(n_texts: int) -> str:
        released.wait(30)
        return vectors(n_texts)

    with Stub(hang) as stub:
        run = k6(stub.url, TIMEOUT_S="0.5")
        released.set()

    assert run.code == THRESHOLDS_BROKEN, run.output
    assert run.metrics["errors"]["value"] == 1


@pytest.mark.parametrize("limit", ["SINGLE_P95_MS", "BATCH_P95_MS"])
def test_answers_slower_than_they_may_be_fail_the_run(k6, limit):
    with Stub(vectors) as stub:
        run = k6(stub.url, **{limit: "0.001"})

    assert run.code == THRESHOLDS_BROKEN, run.output
    assert run.metrics["errors"]["value"] == 0
