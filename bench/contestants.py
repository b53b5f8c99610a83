"""What can be measured: a server that speaks HTTP, or a program that computes in-process. `field.py` starts them.

Each runs in processes of its own. A contestant may have variants, which differ in settings alone; in each workload the
fastest variant stands for the contestant.
"""

import dataclasses
import json
import socket
import subprocess
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import orjson
import psutil

from bench.drive import Background, drive, post
from bench.servers import Server

PATH = "/v1/embeddings"
PRECISIONS = ("float32", "bfloat16", "int8")

# Settings that override the environment and .env: only this machine may connect, without a key, a server stops at once,
# and it refuses no work. By default it would refuse what it could not compute in 30 s at the speed of its start, which
# was slow if the machine had other work then.
OURS = {
    "HOST": "127.0.0.1",
    "PORT": "{port}",
    "API_KEY_SECRET": "",
    "REQUIRE_AUTH": "",
    "GUNICORN_CMD_ARGS": "",
    "DRAIN_S": "0",
    "MAX_QUEUED_TOKENS": "1000000",
}

Texts = list[str]


class Round(NamedTuple):
    """The cost of some requests.

    Attributes:
        elapsed_s: From the first request to the last response.
        latencies_s: Latency of each request; empty for full packs, which have no requests.
        n_requests: Number of requests with a response; fewer than were given if there was a time limit.
        client_cpu_s: Processor time of the client.
        n_background: Background requests answered in that time.
    """

    elapsed_s: float
    latencies_s: list[float]
    n_requests: int
    client_cpu_s: float
    n_background: int = 0


class Variant(Protocol):
    """Something that embeds, with certain settings.

    Attributes:
        settings: The settings, as the tables show them.
    """

    settings: str

    def run(self, requests: Sequence[Texts], n_connections: int) -> Round:
        """Serve all requests.

        Raises:
            RuntimeError: A request failed.
        """

    def vectors(self, texts: Texts) -> list[list[float]] | None:
        """Return the vectors of texts; None if it does not return vectors."""

    def computing(self) -> list[psutil.Process]:
        """Return the processes that compute."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One row of the tables.

    Attributes:
        name: Its name in the tables.
        variants: At least one.
        lowest_cosine: Lowest cosine that its vectors may have to the reference's.
        is_server: False if the number of connections means nothing to it.
        cuts: False if it does not cut a text to the window of sentence-transformers.
    """

    name: str
    variants: Sequence[Variant]
    lowest_cosine: float = 0.999
    is_server: bool = True
    cuts: bool = True


@dataclasses.dataclass(frozen=True)
class Served:
    """A variant that speaks HTTP."""

    server: Server
    model: str
    settings: str = ""

    def run(
        self,
        requests: Sequence[Texts],
        n_connections: int,
        *,
        limit_s: float = float("inf"),
        background: Background | None = None,
        connected: Sequence[socket.socket] = (),
    ) -> Round:
        """See `Variant.run`. Bodies are made before the clock starts, and responses parsed after it has stopped.

        `drive` describes the other arguments.
        """
        bodies = [self.request(texts) for texts in requests]
        more = {"limit_s": limit_s, "background": background, "connected": connected}
        done = drive(self.server.address, bodies, n_connections, **more)
        for response in done.responses:
            n_texts = len(requests[response.number])
            if response.status != 200:
                raise RuntimeError(f"responded with {response.status}: {response.body[:300]!r}")
            if (n_vectors := len(orjson.loads(response.body)["data"])) != n_texts:
                raise RuntimeError(f"returned {n_vectors} vectors for {n_texts} texts")
        latencies_s = [response.latency_s for response in done.responses]
        return Round(done.elapsed_s, latencies_s, len(done.responses), done.client_cpu_s, done.n_background)

    def request(self, texts: Texts) -> bytes:
        """Return the bytes of a request for vectors as JSON numbers, which are every server's default."""
        return post(PATH, json.dumps({"model": self.model, "input": texts}).encode())

    def vectors(self, texts: Texts) -> list[list[float]] | None:
        """See `Variant.vectors`."""
        (response,) = drive(self.server.address, [self.request(texts)], 1).responses
        if response.status != 200:
            raise RuntimeError(f"responded with {response.status}: {response.body[:300]!r}")
        return [item["embedding"] for item in orjson.loads(response.body)["data"]]

    def computing(self) -> list[psutil.Process]:
        """See `Variant.computing`."""
        return self.server.computing()


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that computes texts in-process: a line of JSON in, a line of JSON out.

    Attributes:
        process: The program, with pipes for both.
        settings: See `Variant`.
    """

    process: "subprocess.Popen[str]"
    settings: str = ""

    def ask(self, task: object) -> list[Any]:
        """Return the answer to a task.

        Raises:
            RuntimeError: The program has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(task), file=self.process.stdin, flush=True)
        result = self.process.stdout.readline()
        if not result:
            raise RuntimeError(f"the program ended with code {self.process.wait()}; run it by hand to see why")
        return list(json.loads(result))


class Packs(Program):
    """Full packs of texts, computed by the service's own backend: the program `bench.packs`."""

    def run(self, requests: Sequence[Texts], n_connections: int) -> Round:  # noqa: ARG002 - it has none
        """See `Variant.run`. It gets all texts at once."""
        (elapsed_s,) = self.ask([text for request in requests for text in request])
        return Round(elapsed_s, [], len(requests), 0.0)

    def vectors(self, texts: Texts) -> list[list[float]] | None:  # noqa: ARG002 - it returns no vectors
        """See `Variant.vectors`."""
        return None

    def computing(self) -> list[psutil.Process]:
        """See `Variant.computing`."""
        return psutil.Process(self.process.pid).children()


class InProcess(Program):
    """Texts computed one after another: the program `bench/onnx_runtime.py`."""

    def run(self, requests: Sequence[Texts], n_connections: int) -> Round:  # noqa: ARG002 - it has none
        """See `Variant.run`. Every request holds one text."""
        seconds = self.ask({"texts": [text for (text,) in requests]})
        return Round(sum(seconds), seconds, len(requests), 0.0)

    def vectors(self, texts: Texts) -> list[list[float]] | None:
        """See `Variant.vectors`."""
        return self.ask({"texts": texts, "vectors": True})

    def computing(self) -> list[psutil.Process]:
        """See `Variant.computing`."""
        return [psutil.Process(self.process.pid)]
