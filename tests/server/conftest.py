"""Real Gunicorn processes on loopback."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import CACHE_DIR, SETTINGS, until

ROOT = Path(__file__).parents[2]
MINILM = "sentence-transformers/all-MiniLM-L6-v2"

# Words before a server's command. With them the server reads all settings except CACHE_DIR from its .env.
FROM_FILE = ["env", *(f"--unset={name}" for name in SETTINGS if name != "CACHE_DIR")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**settings) -> dict[str, str]:
    """Return the environment of this process, without thread counts, Gunicorn's arguments and make's own variables.

    Each setting is empty unless given. An empty setting has its default value, even if a .env in the checkout sets it.
    """
    drop = {"OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "GUNICORN_CMD_ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    # Most tests stop their server. With the default DRAIN_S each of them would wait longer.
    ours = {**dict.fromkeys(SETTINGS, ""), "CACHE_DIR": str(CACHE_DIR), "DRAIN_S": "0"}
    return {**kept, **ours, **settings}


def request(port, method, path, body=None, headers=None, *, timeout=60):
    """Send one request on a new connection; return status, JSON and headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"null"), response.headers


class Server:
    """A master and its workers, in the checkout or another folder.

    `before` holds words that stand before the command; `command` replaces the command.
    """

    def __init__(
        self,
        log: Path,
        *arguments: str,
        module: str = "gunicorn",
        cwd: Path = ROOT,
        before: Sequence[str] = (),
        command: Sequence[str] = (),
        **settings: str,
    ) -> None:
        self.port = int(settings.setdefault("PORT", str(free_port())))
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_file = log
        self._n_workers = int(settings.get("WORKERS", 0))
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command or [*before, sys.executable, "-m", module, *(arguments or ["wsgi:app"])],
                cwd=cwd,
                env=environment(**settings),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def wait_until_ready(self) -> None:
        def ready():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                # One worker answers while others are still being forked.
                return self.request("GET", "/health/ready")[0] == 200 and len(self.workers) >= self._n_workers
            return False

        until(ready, deadline_s=120, what="ready")

    def request(self, *arguments, **options):
        """See `request`."""
        return request(self.port, *arguments, **options)

    def embed(self, texts, model=MINILM, **fields):
        """Return the vectors of texts; fail if the status is not 200."""
        status, answer, _ = self.request(
            "POST", "/v1/embeddings", json.dumps({"model": model, "input": texts, **fields})
        )
        assert status == 200, answer
        return [item["embedding"] for item in answer["data"]]

    def metric(self, sample, **labels) -> float:
        """Return the sum of the samples in GET /metrics with this name and these labels; 0 if there are none."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as response:
            families = text_string_to_metric_families(response.read().decode())
        samples = [one for family in families for one in family.samples if one.name == f"embeddings_{sample}"]
        return sum(one.value for one in samples if labels.items() <= one.labels.items())

    def is_busy(self) -> bool:
        """Return True if a short request gets no response within 0.2 s; its connection is then closed."""
        try:
            self.request("POST", "/v1/embeddings", json.dumps({"model": MINILM, "input": "busy?"}), timeout=0.2)
        except TimeoutError:
            return True
        return False

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def stop(self, deadline_s=60) -> int:
        """Stop the server with SIGTERM, as an operator would; return its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(deadline_s)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="session")
def _launch(tmp_path_factory):
    launched = []

    def launch(*arguments, wait=True, **options):
        server = Server(tmp_path_factory.mktemp("server") / "log", *arguments, **options)
        launched.append(server)
        if wait:
            server.wait_until_ready()
        return server

    yield launch
    for server in launched:
        server.kill()


@pytest.fixture
def launch(_launch):
    """Return a function that starts a server with these settings. The servers stop after the test."""
    servers = []

    def launch(*arguments, **options):
        servers.append(_launch(*arguments, **options))
        return servers[-1]

    yield launch
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def server(_launch):
    """One server with default settings, for all tests that only send requests."""
    return _launch()
