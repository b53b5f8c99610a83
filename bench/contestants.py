"""Who is measured: the service, what a user would write without it, a peer, and the bare backend as the limit.

Each runs in processes of its own. A contestant may have variants, which differ in settings alone; in each workload the
fastest of them stands for it.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import orjson
import psutil

from bench import environments, servers
from bench.drive import Background, drive, post
from bench.environments import UnavailableError
from bench.servers import ROOT, Server
from embedding_api.machine import cores

PATH = "/v1/embeddings"
PRECISIONS = ("float32", "bfloat16", "int8")

# What the bench decides, over the environment and .env: only this machine may come in, and without a key.
OURS = {"HOST": "127.0.0.1", "API_KEY_SECRET": "", "REQUIRE_AUTH": "", "GUNICORN_CMD_ARGS": "", "PORT": "{port}"}

# No peer may ask a hub or tell anyone that it runs.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}

# Budgets of padded tokens that the bare backend tries.
BUDGETS = (128, 256, 512, 1024, 2048, 4096)

# The peer as it comes, against which the service's targets are set, and with the batch size that serves it better: on a
# CPU, where each batch is padded to its longest text, that is a small one.
PEER, PEER_AT_ITS_BEST = "infinity torch", "infinity torch, batches of 8"
_BATCH_SIZES = {PEER: (32,), PEER_AT_ITS_BEST: (8,), "infinity optimum": (32, 8)}

Texts = list[str]


class Round(NamedTuple):
    """What it took to answer some requests.

    Attributes:
        elapsed_s: From the first request to the last answer.
        latencies_s: Of each request; none of the bare backend, which has no requests.
        n_requests: How many were answered: fewer than were to be if there was a limit of time.
        client_cpu_s: What of this the client computed for.
        n_background: Requests of the background that were answered meanwhile.
    """

    elapsed_s: float
    latencies_s: list[float]
    n_requests: int
    client_cpu_s: float
    n_background: int = 0


class Variant(Protocol):
    """Something that embeds, with certain settings."""

    settings: str

    def run(self, requests: Sequence[Texts], n_connections: int) -> Round:
        """Answers all requests.

        Raises:
            RuntimeError: It cannot.
        """

    def vectors(self, texts: Texts) -> list[list[float]] | None:
        """The vectors of texts; None if it does not give them out."""

    def computing(self) -> list[psutil.Process]:
        """The processes that compute."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One line of the tables.

    Attributes:
        name: As shown.
        variants: At least one.
        lowest_cosine: What its vectors must at least have in common with the reference.
        is_server: Whether connections mean something to it.
    """

    name: str
    variants: Sequence[Variant]
    lowest_cosine: float = 0.999
    is_server: bool = True


@dataclasses.dataclass(frozen=True)
class Served:
    """Something that speaks HTTP."""

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
        """See `Variant.run`; bodies are made before the clock starts and answers read after it has stopped."""
        sent = [self.request(texts) for texts in requests]
        did = drive(self.server.address, sent, n_connections, limit_s=limit_s, background=background)
        for answer in did.answers:
            n_texts = len(requests[answer.number])
            if answer.status != 200:
                raise RuntimeError(f"answered {answer.status}: {answer.body[:300]!r}")
            if (n_vectors := len(orjson.loads(answer.body)["data"])) != n_texts:
                raise RuntimeError(f"gave {n_vectors} vectors for {n_texts} texts")
        latencies_s = [answer.latency_s for answer in did.answers]
        return Round(did.elapsed_s, latencies_s, len(did.answers), did.client_cpu_s, did.n_background)

    def request(self, texts: Texts) -> bytes:
        """The bytes of a request, with vectors as JSON numbers, which is every server's default."""
        return post(PATH, json.dumps({"model": self.model, "input": texts}).encode())

    def vectors(self, texts: Texts) -> list[list[float]] | None:
        """See `Variant.vectors`."""
        (answer,) = drive(self.server.address, [self.request(texts)], 1).answers
        if answer.status != 200:
            raise RuntimeError(f"answered {answer.status}: {answer.body[:300]!r}")
        return [item["embedding"] for item in orjson.loads(answer.body)["data"]]

    def computing(self) -> list[psutil.Process]:
        """See `Variant.computing`."""
        return self.server.computing()


@dataclasses.dataclass(frozen=True)
class Bare:
    """The bare backend with one budget of padded tokens; all budgets share one program."""

    process: "subprocess.Popen[str]"
    batch_tokens: int

    @property
    def settings(self) -> str:
        """See `Variant.settings`."""
        return f"batches of {self.batch_tokens} tokens"

    def run(self, requests: Sequence[Texts], n_connections: int) -> Round:  # noqa: ARG002 - it has none
        """See `Variant.run`; all texts at once."""
        texts = [text for request in requests for text in request]
        elapsed_s, _ = _ask(self.process, [texts, self.batch_tokens])
        return Round(elapsed_s, [], len(requests), 0.0)

    def vectors(self, texts: Texts) -> list[list[float]] | None:  # noqa: ARG002 - only the service's vectors go out
        """See `Variant.vectors`."""
        return None

    def computing(self) -> list[psutil.Process]:
        """See `Variant.computing`."""
        return psutil.Process(self.process.pid).children()


def _ask(process: "subprocess.Popen[str]", question: object) -> list[float]:
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps(question), file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"bench.bare ended with code {process.wait()}; see the lines above")
    return list(json.loads(answer))


class Field:
    """All contestants, and why others are not among them.

    Everything is started at once and waited for afterwards; `stack` stops it.
    """

    def __init__(self, stack: contextlib.ExitStack, model: str, folder: Path, window: int | None) -> None:
        self._stack = stack
        self._model = model
        self._folder = folder
        self._window = window
        self.left_out: dict[str, str] = {}

    def enter(self, names: Sequence[str]) -> list[Contestant]:
        """Starts the contestants of these names; those that cannot run are told in `left_out`."""
        begun = [(name, self._begun(name)) for name in names]
        field = []
        for name, waiting in begun:
            try:
                field.append(next(waiting))
            except (RuntimeError, OSError) as error:
                self.left_out[name] = str(error)
        return field

    def _begun(self, name: str) -> Iterator[Contestant]:
        """A generator that has started processes, and gives the contestant once they are ready."""
        kind, _, detail = name.partition(" ")
        make = {"service": self._service, "bare": self._bare, "Flask": self._flask, "infinity": self._infinity}[kind]
        generator = make(name, detail)
        try:
            next(generator)  # up to the yield of None: started, not waited for
        except (RuntimeError, OSError) as error:
            return iter_of_error(error)
        return (contestant for contestant in generator if contestant is not None)

    def _service(self, name: str, precision: str) -> Iterator[Contestant | None]:
        command = [sys.executable, "-m", "gunicorn"]
        start = servers.start(name, command, OURS | {"PRECISION": precision}, n_workers=cores.count())
        server = self._stack.enter_context(start)
        yield None
        server.wait("/health/ready")
        served = json.loads(server.wait("/v1/models"))["data"][0]
        if served["precision"] != precision:
            raise UnavailableError(f"asked for PRECISION={precision}, it serves {served['precision']}")
        lowest = 0.98 if precision == "int8" else 0.999
        yield Contestant(name, [Served(server, self._model, f"{served['backend']}")], lowest)

    def _bare(self, name: str, precision: str) -> Iterator[Contestant | None]:
        process = self._stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "bench.bare"],
                cwd=ROOT,
                env=os.environ | {"PRECISION": precision, "WORKERS": str(cores.count())},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        yield None
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise UnavailableError(f"bench.bare ended with code {process.wait()}; run it by hand to see why")
        loaded = json.loads(line)
        if loaded["precision"] != precision:
            raise UnavailableError(f"asked for PRECISION={precision}, it computes in {loaded['precision']}")
        yield Contestant(name, [Bare(process, budget) for budget in BUDGETS], is_server=False)

    def _flask(self, name: str, _: str) -> Iterator[Contestant | None]:
        n = cores.count()
        servers_ = []
        for n_workers, n_torch in dict.fromkeys([(1, n), (n, 1)]):
            for worker in (["sync"], ["gthread", "--threads", "8"]):
                start = servers.start(
                    name,
                    [
                        *(sys.executable, "-m", "gunicorn", "flask_app:app", "--bind", "127.0.0.1:{port}"),
                        *("--workers", str(n_workers), "--timeout", "600", "--worker-class", *worker),
                    ],
                    {"MODEL_FOLDER": str(self._folder), "TORCH_THREADS": str(n_torch), "GUNICORN_CMD_ARGS": ""},
                    n_workers=n_workers,
                    cwd=ROOT / "bench",
                )
                settings = f"{worker[0]}, {n_workers} workers x {n_torch} torch threads"
                servers_.append((self._stack.enter_context(start), settings, n_workers))
        yield None
        for server, _settings, n_workers in servers_:
            pids: set[bytes] = set()
            deadline = time.monotonic() + servers.READY_S
            while len(pids) < n_workers and time.monotonic() < deadline:
                pids.add(server.wait("/health"))
        yield Contestant(name, [Served(server, self._model, settings) for server, settings, _ in servers_])

    def _infinity(self, name: str, engine: str) -> Iterator[Contestant | None]:
        engine = engine.partition(",")[0]
        environment = environments.infinity(engine)
        folder, more = self._folder, []
        if engine == "optimum":
            folder, more = (
                environments.onnx(environment, self._folder, self._window or 512),
                ["--pooling-method", "mean"],
            )
        servers_ = []
        for batch_size in _BATCH_SIZES[name]:
            start = servers.start(
                name,
                [
                    *(str(environment / "bin/infinity_emb"), "v2", "--model-id", ".", "--engine", engine),
                    *("--served-model-name", self._model, "--host", "127.0.0.1", "--port", "{port}"),
                    *("--url-prefix", "/v1", "--device", "cpu", "--batch-size", str(batch_size), *more),
                ],
                _OFFLINE | {"HF_HOME": str(environment / "home")},
                # "." and not the path: with this optimum its engine finds the ONNX file only by a relative name.
                cwd=folder,
            )
            servers_.append((self._stack.enter_context(start), f"batch size {batch_size}"))
        yield None
        body = json.dumps({"model": self._model, "input": ["Hello"]}).encode()
        for server, _ in servers_:
            server.wait(PATH, body)
        yield Contestant(name, [Served(server, self._model, settings) for server, settings in servers_])


def iter_of_error(error: Exception) -> Iterator[Contestant]:
    """An iterator whose first step raises, so that what fails at the start is told where it is waited for."""
    raise error
    yield
