"""Starts what is measured as a process of its own on a free port, and stops it with all its children."""

import contextlib
import dataclasses
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
        name: For messages.
        address: Where it listens.
        process: Its first process.
        n_workers: How many children of that compute; 0 if it computes itself.
        log: What it wrote.
    """

    name: str
    address: Address
    process: "subprocess.Popen[bytes]"
    n_workers: int
    log: IO[bytes]

    def wait(self, path: str, body: bytes | None = None) -> bytes:
        """Asks until the answer is 200, and returns it.

        Raises:
            RuntimeError: It ended, or is not ready within READY_S; tells the end of its log.
        """
        deadline = time.monotonic() + READY_S
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
        """What it wrote so far; its own place in the file stays where it is."""
        number = self.log.fileno()
        return os.pread(number, os.fstat(number).st_size, 0).decode(errors="replace").strip()

    def computing(self) -> list[psutil.Process]:
        """The processes that compute."""
        master = psutil.Process(self.process.pid)
        return master.children() if self.n_workers else [master]


@contextlib.contextmanager
def start(
    name: str, command: Sequence[str], environment: Mapping[str, str], *, n_workers: int = 0, cwd: Path = ROOT
) -> Iterator[Server]:
    """Starts a server without waiting for it; stops it in the end.

    Args:
        name: For messages.
        command: `{port}` in it becomes the port.
        environment: On top of the bench's own; `{port}` as well.
        n_workers: See `Server`.
        cwd: Where it runs.
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
