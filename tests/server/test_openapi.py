"""The OpenAPI document at a real server: requests made from the document, and a browser that shows its page."""

import json
import re
import subprocess
import sys
import urllib.request

import pytest

from tests import models
from tests.server.browser import open_page
from tests.server.conftest import MINILM, ROOT

KEY = "a-key"
# The highest number of random cases for each operation. Each phase of schemathesis makes its own number of cases.
N_EXAMPLES = "60"


@pytest.fixture(scope="module")
def keyed(_launch, tmp_path_factory):
    """A server that requires a key, with a model that has prompts and a model without prompts."""
    prompted = models.save(models.bert_prompts, tmp_path_factory.mktemp("models"))
    return _launch(WORKERS="1", API_KEY_SECRET=KEY, SUPPORTED_MODELS=f"{MINILM},prompted={prompted}")


def schemathesis(server, cwd, *arguments: str) -> str:
    """Run schemathesis against a server; return its output, and fail if it finds an error."""
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", f"--config-file={ROOT}/tests/server/schemathesis.toml", "run",
         "--checks=all", "--mode=all", "--max-examples", N_EXAMPLES, "--no-color", *arguments,
         f"{server.url}/openapi.json"],
        cwd=cwd, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


def test_the_document_that_is_kept_is_the_one_that_is_served_by_default(server):
    """If this fails, run `memementor-embeddings openapi > docs/openapi.json`."""
    with urllib.request.urlopen(f"{server.url}/openapi.json", timeout=30) as response:
        assert json.load(response) == json.loads((ROOT / "docs" / "openapi.json").read_text())


@pytest.mark.fault("malformed")
def test_requests_made_from_the_document_are_answered_as_it_says(server, tmp_path, observed):
    said = schemathesis(server, tmp_path)
    (n_cases,) = re.findall(r"(\d+) generated", said)
    observed(f"{n_cases} requests made from the OpenAPI document: answered as it says")


@pytest.mark.fault("malformed")
def test_requests_with_and_without_a_key_are_answered_as_the_document_says(keyed, tmp_path, observed):
    said = schemathesis(keyed, tmp_path, "--header", f"Authorization: Bearer {KEY}")
    (n_cases,) = re.findall(r"(\d+) generated", said)
    observed(f"{n_cases} with and without a key: answered as it says")


def test_a_browser_shows_the_page_and_asks_nobody_else(keyed):
    with open_page(f"{keyed.url}/docs") as page:
        page.wait_for("Turn texts into vectors")
        # Enters the key, and sends the first example.
        page.click(".authorize")
        page.fill("#auth-bearer-value", KEY)
        page.click(".modal-btn.authorize")
        page.click(".btn-done")
        page.click("#operations-embeddings-create_embeddings button.opblock-summary-control")
        page.click("#operations-embeddings-create_embeddings .try-out__btn")
        page.click("#operations-embeddings-create_embeddings .execute")
        page.wait_for('"object": "embedding"', "#operations-embeddings-create_embeddings .live-responses-table")
        assert page.complaints == []
        assert {url.split("/", 3)[2] for url in page.asked} == {f"127.0.0.1:{keyed.port}"}
        assert f"{keyed.url}/v1/embeddings" in page.asked


def test_a_browser_tells_of_what_the_page_may_not_do(keyed):
    """The test above relies on this."""
    with open_page(f"{keyed.url}/docs") as page:
        page.wait_for("Turn texts into vectors")
        page.evaluate("fetch('http://localhost:9/').catch(() => { document.title = 'refused' })")
        page.wait_for("refused", "title")
        assert any("Content Security Policy" in complaint for complaint in page.complaints)
