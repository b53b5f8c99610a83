"""A browser opens the manual's site and searches in it, without any other host."""

import functools
import http.server
import subprocess
import sys
import threading

import pytest

from tests.server.browser import open_page
from tests.server.conftest import ROOT


@pytest.fixture
def url(tmp_path):
    """The address of the built site."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    handler = functools.partial(Silent, directory=tmp_path / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class Silent(http.server.SimpleHTTPRequestHandler):
    """Serves files, and logs nothing."""

    def log_message(self, *args):
        pass


def test_a_browser_reads_and_searches_the_manual_without_another_host(url):
    with open_page(url) as page:
        page.wait_for("Quick start")
        page.fill("[data-md-component=search-query]", "MAX_QUEUED_TOKENS")
        page.wait_for("Settings", within="[data-md-component=search-result]")
        assert page.complaints == []
        assert [asked for asked in page.asked if not asked.startswith(url)] == []
        assert f"{url}search/search_index.json" in page.asked
