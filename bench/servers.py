"""Starts servers as processes of their own on free ports, and stops them with all their children."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from bench.drive import Address

ROOT = Path(__file__).parents[1]

# A first start may convert the model and calibrate it.
READY_S = 900


@dataclasses.dataclass(frozen=True)
class Server:
    """A server on loopback.

    Attributes:
        name: Name in messages.
        address: Address that it listens on.
        process: Its first process.
        n_workers: Number of that process's children that compute; 0 if the process computes itself.
        log: File of its output.
    """

    name: str
    address: Address
    process: "subprocess.Popen[bytes]"
    n_workers: int
    log: IO[bytes]

    def wait(self, path: str, body: bytes | None = None, *, most_s: float = READY_S) -> bytes:
        """Send a request until the status is 200, and return the body.

        Raises:
            RuntimeError: The server ended, or is not ready within `most_s`. The message has the end of its log.
        """
        deadline = time.monotonic() + most_s
        url = "http://{}:{}{}".format(*self.address, path)
        while True:
            with contextlib.suppress(urllib.error.URLError, OSError):
                request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=60) as response:
                    return bytes(response.read())
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not get ready: " + " | ".join(self.logged().splitlines()[-3:]))
            time.sleep(0.1)

    def logged(self) -> str:
        """Return its output so far, without moving its own position in the file."""
        number = self.log.fileno()
        return os.pread(number, os.fstat(number).st_size, 0).decode(errors="replace").strip()

    def computing(self) -> list[psutil.Process]:
        """Return the processes that compute."""
        master = psutil.Process(self.process.pid)
        return master.children() if self.n_workers else [master]


def program(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    """Start a program that reads a line from standard input and writes one, again and again, until its input ends."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def first_line(process: "subprocess.Popen[str]", name: str) -> dict[str, str]:
    """Return the line of JSON with which a program says that it is ready.

    Raises:
        RuntimeError: The program ended before.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{name} ended with code {process.wait()}; run it by hand to see why")
    return dict(json.loads(line))


@contextlib.contextmanager
def start(
    name: str, command: Sequence[str], environment: Mapping[str, str], *, n_workers: int = 0, cwd: Path = ROOT
) -> Iterator[Server]:
    """Start a server without waiting for it, and stop it in the end.

    Args:
        name: Name in messages.
        command: Its command; `{port}` is replaced by the port.
        environment: Variables besides the bench's own; `{port}` is replaced as well.
        n_workers: See `Server`.
        cwd: Working folder.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours = {key: value.replace("{port}", str(port)) for key, value in environment.items()}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [part.replace("{port}", str(port)) for part in command],
            cwd=cwd,
            env=os.environ | ours,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            yield Server(name, ("127.0.0.1", port), process, n_workers, log)
        finally:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=40)
            process.kill()
            process.wait()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
