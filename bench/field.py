"""Starts the contestants: the service, a plain Flask application, a peer, and the bare backend as the upper limit."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import environments, servers
from bench.contestants import OURS, PATH, PEER, PEER_AT_ITS_BEST, Bare, Contestant, Served
from bench.environments import UnavailableError
from bench.servers import ROOT
from embedding_api.machine import cores

# No peer may contact a hub, or report that it runs.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}

# Budgets of padded tokens a batch that the bare backend tries.
BUDGETS = (128, 256, 512, 1024, 2048, 4096)

_BATCH_SIZES = {PEER: (32,), PEER_AT_ITS_BEST: (8,), "infinity optimum": (32, 8)}


class Field:
    """Starts contestants, all at once, and waits for them afterwards. `stack` stops them.

    Attributes:
        left_out: Contestants that cannot run, with the reason.
    """

    def __init__(self, stack: contextlib.ExitStack, model: str, folder: Path, window: int | None) -> None:
        self._stack = stack
        self._model = model
        self._folder = folder
        self._window = window
        self.left_out: dict[str, str] = {}

    def enter(self, names: Sequence[str]) -> list[Contestant]:
        """Start the contestants of these names, and return those that run."""
        begun = [(name, self._begun(name)) for name in names]
        field = []
        for name, waiting in begun:
            try:
                field.append(next(waiting))
            except (RuntimeError, OSError) as error:
                self.left_out[name] = str(error)
        return field

    def _begun(self, name: str) -> Iterator[Contestant]:
        """Return an iterator that has started processes, and yields the contestant once they are ready."""
        kind, _, detail = name.partition(" ")
        make = {"service": self._service, "bare": self._bare, "Flask": self._flask, "infinity": self._infinity}[kind]
        generator = make(name, detail)
        try:
            next(generator)  # each generator yields None once its processes are started
        except (RuntimeError, OSError) as error:
            return _raising(error)
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
        first = process.stdout.readline()
        if not first:
            raise UnavailableError(f"bench.bare ended with code {process.wait()}; run it by hand to see why")
        loaded = json.loads(first)
        if loaded["precision"] != precision:
            raise UnavailableError(f"asked for PRECISION={precision}, it computes in {loaded['precision']}")
        yield Contestant(name, [Bare(process, budget) for budget in BUDGETS], is_server=False)

    def _flask(self, name: str, _: str) -> Iterator[Contestant | None]:
        n = cores.count()
        started = []
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
                started.append((self._stack.enter_context(start), settings, n_workers))
        yield None
        for server, _settings, n_workers in started:
            pids: set[bytes] = set()
            deadline = time.monotonic() + servers.READY_S
            while len(pids) < n_workers and time.monotonic() < deadline:
                pids.add(server.wait("/health"))
        yield Contestant(name, [Served(server, self._model, settings) for server, settings, _ in started])

    def _infinity(self, name: str, engine: str) -> Iterator[Contestant | None]:
        engine = engine.partition(",")[0]
        environment = environments.infinity(engine)
        folder, more = self._folder, []
        if engine == "optimum":
            folder = environments.onnx(environment, self._folder, self._window or 512)
            more = ["--pooling-method", "mean"]
        started = []
        for batch_size in _BATCH_SIZES[name]:
            start = servers.start(
                name,
                [
                    *(str(environment / "bin/infinity_emb"), "v2", "--model-id", ".", "--engine", engine),
                    *("--served-model-name", self._model, "--host", "127.0.0.1", "--port", "{port}"),
                    *("--url-prefix", "/v1", "--device", "cpu", "--batch-size", str(batch_size), *more),
                ],
                _OFFLINE | {"HF_HOME": str(environment / "home")},
                # infinity with this optimum finds the ONNX file only by a relative name, so the path is ".".
                cwd=folder,
            )
            started.append((self._stack.enter_context(start), f"batch size {batch_size}"))
        yield None
        body = json.dumps({"model": self._model, "input": ["Hello"]}).encode()
        for server, _ in started:
            server.wait(PATH, body)
        yield Contestant(name, [Served(server, self._model, settings) for server, settings in started])


def _raising(error: Exception) -> Iterator[Contestant]:
    """Return an iterator whose first step raises, so that a failed start is reported where it is waited for."""
    raise error
    yield
