"""What can be measured: a server that speaks HTTP, or the bare backend. `field.py` starts them.

Each runs in processes of its own. A contestant may have variants, which differ in settings alone; in each workload the
fastest variant stands for the contestant.
"""

import dataclasses
import json
import subprocess
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import orjson
import psutil

from bench.drive import Background, drive, post
from bench.servers import Server

PATH = "/v1/embeddings"
PRECISIONS = ("float32", "bfloat16", "int8")

# Settings that override the environment and .env: only this machine may connect, and without a key.
OURS = {"HOST": "127.0.0.1", "API_KEY_SECRET": "", "REQUIRE_AUTH": "", "GUNICORN_CMD_ARGS": "", "PORT": "{port}"}

# The peer with its default batch size, which the service's targets refer to, and with a better batch size. On a CPU a
# small batch is better, because the peer pads each batch to its longest text.
PEER, PEER_AT_ITS_BEST = "infinity torch", "infinity torch, batches of 8"

Texts = list[str]


class Round(NamedTuple):
    """The cost of some requests.

    Attributes:
        elapsed_s: From the first request to the last response.
        latencies_s: Latency of each request; empty for the bare backend, which has no requests.
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
    """

    name: str
    variants: Sequence[Variant]
    lowest_cosine: float = 0.999
    is_server: bool = True


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
    ) -> Round:
        """See `Variant.run`. Bodies are made before the clock starts, and responses parsed after it has stopped."""
        bodies = [self.request(texts) for texts in requests]
        done = drive(self.server.address, bodies, n_connections, limit_s=limit_s, background=background)
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
class Bare:
    """The bare backend with one budget of padded tokens a batch. All budgets share one program, `bench.bare`."""

    process: "subprocess.Popen[str]"
    batch_tokens: int

    @property
    def settings(self) -> str:
        """See `Variant.settings`."""
        return f"batches of {self.batch_tokens} tokens"

    def run(self, requests: Sequence[Texts], n_connections: int) -> Round:  # noqa: ARG002 - it has none
        """See `Variant.run`. It gets all texts at once."""
        texts = [text for request in requests for text in request]
        elapsed_s, _ = _result(self.process, [texts, self.batch_tokens])
        return Round(elapsed_s, [], len(requests), 0.0)

    def vectors(self, texts: Texts) -> list[list[float]] | None:  # noqa: ARG002 - it returns no vectors
        """See `Variant.vectors`."""
        return None

    def computing(self) -> list[psutil.Process]:
        """See `Variant.computing`."""
        return psutil.Process(self.process.pid).children()


def _result(process: "subprocess.Popen[str]", task: object) -> list[float]:
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps(task), file=process.stdin, flush=True)
    result = process.stdout.readline()
    if not result:
        raise RuntimeError(f"bench.bare ended with code {process.wait()}; see its output above")
    return list(json.loads(result))
