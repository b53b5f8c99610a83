"""Starts what the service is compared with.

Each function starts processes, and yields None once they are started, and the contestant once they are ready.
"""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench import environments, servers
from bench.contestants import PATH, Contestant, InProcess, Served
from bench.environments import UnavailableError
from bench.servers import ROOT
from embedding_api.machine import cores

Starting = Iterator[Contestant | None]

# No peer may contact a hub, or report that it runs.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}

# Texts that llama.cpp computes at once, and the most tokens of each.
_LLAMA_SLOTS, _LLAMA_TOKENS = 32, 512


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model that every contestant serves.

    Attributes:
        stack: Stops what was started.
        model: Name of the model.
        folder: Folder of the model.
        window: The model's window in tokens; None if it has none.
    """

    stack: contextlib.ExitStack
    model: str
    folder: Path
    window: int | None

    @property
    def n_most(self) -> int:
        """The window, or 512 tokens where the model has none."""
        return self.window or 512


def onnx_runtime(subject: Subject, name: str, _: str) -> Starting:
    """Start ONNX Runtime in-process."""
    python = environments.environment("onnxruntime") / "bin/python"
    folder = environments.onnx(python, subject.folder, subject.n_most)
    command = [str(python), str(ROOT / "bench" / "onnx_runtime.py"), str(folder), str(subject.n_most)]
    process = subject.stack.enter_context(servers.program(command, {}))
    yield None
    ready = servers.first_line(process, "bench/onnx_runtime.py")
    yield Contestant(name, [InProcess(process, f"{ready['version']}, default options")], is_server=False)


def llama_cpp(subject: Subject, name: str, type_name: str) -> Starting:
    """Start llama.cpp's server with the model as GGUF."""
    program = environments.program("llama-server")
    file = environments.gguf(subject.folder, type_name.lower())
    n_cores = cores.count()
    command = llama_cpp_command(program, file, subject.model, n_cores)
    server = subject.stack.enter_context(servers.start(name, command, {}))
    yield None
    server.wait("/health")
    lowest = 0.999 if type_name == "f16" else 0.98
    variant = Served(server, subject.model, f"{n_cores} threads, {_LLAMA_SLOTS} slots")
    yield Contestant(name, [variant], lowest, cuts=False)


def llama_cpp_command(program: str, file: Path, model: str, n_cores: int) -> list[str]:
    """Return the command that serves a GGUF file."""
    return [
        *(program, "--model", str(file), "--alias", model, "--embedding"),
        *("--host", "127.0.0.1", "--port", "{port}", "--threads", str(n_cores), "--threads-batch", str(n_cores)),
        *("--parallel", str(_LLAMA_SLOTS), "--ctx-size", str(_LLAMA_SLOTS * _LLAMA_TOKENS)),
        *("--ubatch-size", str(_LLAMA_TOKENS)),
    ]


def tei(subject: Subject, name: str, _: str) -> Starting:
    """Start text-embeddings-inference with the weights as ONNX."""
    program = environments.program("text-embeddings-router")
    python = environments.environment("onnxruntime") / "bin/python"
    folder = environments.onnx(python, subject.folder, subject.n_most)
    command = tei_command(program, folder, subject.model)
    server = subject.stack.enter_context(servers.start(name, command, _OFFLINE))
    yield None
    server.wait("/health")
    yield Contestant(name, [Served(server, subject.model, "ONNX, its defaults")])


def tei_command(program: str, folder: Path, model: str) -> list[str]:
    """Return the command that serves a folder with the weights as ONNX."""
    return [
        *(program, "--model-id", str(folder), "--hostname", "127.0.0.1", "--port", "{port}"),
        *("--pooling", "mean", "--auto-truncate", "--served-model-name", model),
    ]


def infinity(subject: Subject, name: str, _: str) -> Starting:
    """Start infinity with its torch engine and its defaults."""
    environment = environments.environment("infinity")
    command = [
        *(str(environment / "bin/infinity_emb"), "v2", "--model-id", str(subject.folder), "--engine", "torch"),
        *("--served-model-name", subject.model, "--host", "127.0.0.1", "--port", "{port}"),
        *("--url-prefix", "/v1", "--device", "cpu"),
    ]
    variables = _OFFLINE | {"HF_HOME": str(environment / "home")}
    server = subject.stack.enter_context(servers.start(name, command, variables))
    yield None
    server.wait(PATH, json.dumps({"model": subject.model, "input": ["Hello"]}).encode())
    yield Contestant(name, [Served(server, subject.model, "torch, its defaults")])


def flask(subject: Subject, name: str, _: str) -> Starting:
    """Start what a user would write: one worker with all cores, and as many workers as there are cores."""
    n = cores.count()
    started = []
    for n_workers, n_torch in dict.fromkeys([(1, n), (n, 1)]):
        command = [
            *(sys.executable, "-m", "gunicorn", "flask_app:app", "--bind", "127.0.0.1:{port}"),
            *("--workers", str(n_workers), "--timeout", "600", "--worker-class", "gthread", "--threads", "8"),
        ]
        variables = {"MODEL_FOLDER": str(subject.folder), "TORCH_THREADS": str(n_torch), "GUNICORN_CMD_ARGS": ""}
        start = servers.start(name, command, variables, n_workers=n_workers, cwd=ROOT / "bench")
        settings = f"{n_workers} workers x {n_torch} torch threads"
        started.append((subject.stack.enter_context(start), settings, n_workers))
    yield None
    for server, _settings, n_workers in started:
        pids: set[bytes] = set()
        deadline = time.monotonic() + servers.READY_S
        while len(pids) < n_workers:
            if time.monotonic() > deadline:
                raise UnavailableError(f"of {n_workers} workers, {len(pids)} answer")
            pids.add(server.wait("/health"))
    yield Contestant(name, [Served(server, subject.model, settings) for server, settings, _ in started])
