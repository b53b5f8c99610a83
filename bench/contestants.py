"""Who is measured: the service, and what a user would write without it. Each runs in processes of its own."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import psutil

from bench.drive import Request, Round, over_http

ROOT = Path(__file__).parents[1]

# What the bench decides, over the environment and .env: only this machine may come in, and without a key.
_OURS = {"HOST": "127.0.0.1", "API_KEY_SECRET": "", "REQUIRE_AUTH": "", "GUNICORN_CMD_ARGS": ""}
OUR_SETTINGS = {*_OURS, "PORT"}


class Contestant(Protocol):
    """Something that embeds."""

    name: str

    def run(self, requests: Sequence[Request], n_connections: int) -> Round:
        """Answers all requests."""

    def private_mib(self) -> list[float]:
        """Memory that nobody shares, in MiB, of each process that computes."""


@dataclasses.dataclass(frozen=True)
class Service:
    """The service, as it is deployed."""

    url: str
    model: str
    master: psutil.Process
    name: str = "service"

    def run(self, requests: Sequence[Request], n_connections: int) -> Round:
        """Sends all requests over HTTP."""
        return over_http(self.url, self.model, requests, n_connections)

    def private_mib(self) -> list[float]:
        """See `Contestant`; one number a worker."""
        return [worker.memory_full_info().uss / 2**20 for worker in self.master.children()]


@contextlib.contextmanager
def service(model: str) -> Iterator[Service]:
    """Starts the service on a free port, and stops it.

    Raises:
        RuntimeError: It did not get ready.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn"], cwd=ROOT, env=os.environ | _OURS | {"PORT": str(port)}, stderr=log
        )
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 120
            while not _is_ready(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"the service did not get ready:\n{log.read()}")
                time.sleep(0.05)
            yield Service(url, model, psutil.Process(process.pid))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=40)
            finally:
                process.kill()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@dataclasses.dataclass(frozen=True)
class Reference:
    """`SentenceTransformer.encode` in a loop, without HTTP, in one process with as many threads as torch takes."""

    process: "subprocess.Popen[str]"
    name: str = "encode"

    def run(self, requests: Sequence[Request], n_connections: int) -> Round:  # noqa: ARG002 - a loop has none
        """Encodes one request after the other."""
        return Round(*_ask(self.process, requests))

    def private_mib(self) -> list[float]:
        """See `Contestant`."""
        return [psutil.Process(self.process.pid).memory_full_info().uss / 2**20]


@contextlib.contextmanager
def reference(folder: Path) -> Iterator[Reference]:
    """Starts the process that encodes with the model of a folder, and stops it."""
    command = [sys.executable, "-m", "bench.reference", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            _ask(process, [["Hello"]])  # returns once the model is loaded
            yield Reference(process)
        finally:
            process.kill()


def _ask(process: "subprocess.Popen[str]", requests: Sequence[Request]) -> tuple[float, list[float], int]:
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps(requests), file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"bench.reference ended with code {process.wait()}; see the lines above")
    elapsed_s, latencies_s, n_tokens = json.loads(answer)
    return elapsed_s, latencies_s, n_tokens
