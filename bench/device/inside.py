"""Measures the engine in one process, without HTTP, and where the time of a request goes.

A separate program, since a process computes in one precision: `python -m bench.device.inside FOLDER UNTIL [quick]`.
UNTIL is a time on the monotonic clock, which all processes share. Settings come from the environment. It writes one
JSON object.
"""

import contextlib
import functools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.device import MODEL
from bench.device.sweep import QUICK, Pace, Point, Texts, sweep
from bench.texts import Shelf
from embedding_api.engine.backends.torch_backend import TorchBackend
from embedding_api.engine.engine import Engine
from embedding_api.engine.start import load_engine
from embedding_api.engine.work import Ids, Result
from embedding_api.errors import StartError
from embedding_api.settings import load_settings

# Waits until a device has computed all that it was given. A CPU computes at once.
_WAITS = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize, "cpu": lambda: None}


class Stages:
    """The seconds that the stages of `TorchBackend.compute` took: tensors to the device, modules, vectors back."""

    def __init__(self, device: str) -> None:
        self.seconds = {"to_device": 0.0, "forward": 0.0, "to_host": 0.0}
        self._wait = _WAITS[device]
        self._last_s = 0.0

    def begin(self) -> None:
        """Begin the first stage of a batch."""
        self._last_s = time.perf_counter()

    def end(self, stage: str) -> None:
        """End a stage, and begin the next."""
        self._wait()
        now_s = time.perf_counter()
        self.seconds[stage] += now_s - self._last_s
        self._last_s = now_s


@contextlib.contextmanager
def staged(backend: TorchBackend) -> Iterator[Stages]:
    """Time the stages of every batch in the block. Each stage waits for the device, which costs a little."""
    stages, compute = Stages(backend.device), backend.compute

    def timed(inputs: Sequence[Ids], n_prompt_tokens: int) -> Result:
        stages.begin()
        result = compute(inputs, n_prompt_tokens)
        stages.end("to_host")
        return result

    before = backend.model.register_forward_pre_hook(lambda *_: stages.end("to_device"))
    after = backend.model.register_forward_hook(lambda *_: stages.end("forward"))
    backend.compute = timed
    try:
        yield stages
    finally:
        before.remove()
        after.remove()
        del backend.compute


def run(engine: Engine, backend: TorchBackend, requests: list[Texts], limit_s: float) -> Point:
    """Embed requests one after another. See `sweep.Run`; also return tokens, batches and the share of each stage."""
    n_done, started_s = 0, time.perf_counter()
    while n_done < len(requests) and (not n_done or time.perf_counter() < started_s + limit_s):
        engine.embed(MODEL, requests[n_done])
        n_done += 1
    elapsed_s = time.perf_counter() - started_s
    # A few of them again, with the stages, and not more than a half of them.
    again, done, total_s = requests[: min(5, n_done // 2 + 1)], [], 0.0
    with staged(backend) as stages:
        for texts in again:
            started_s = time.perf_counter()
            done.append(engine.embed(MODEL, texts))
            total_s += time.perf_counter() - started_s
    parts = {
        "tokenizing": sum(each.timing.tokenize_s for each in done),
        "queue": sum(each.timing.queue_s for each in done),
        **stages.seconds,
    }
    parts["rest"] = max(0.0, total_s - sum(parts.values()))
    return {
        "elapsed_s": elapsed_s,
        "requests": n_done,
        "tokens": round(sum(each.n_tokens for each in done) / len(again)),
        "batches": round(sum(len(each.timing.runs) for each in done) / len(again), 1),
        "shares": {name: round(seconds / total_s, 3) for name, seconds in parts.items()},
    }


def measure(folder: Path, until_s: float, pace: Pace) -> dict[str, Any]:
    """Load the model with the settings of the environment, and measure until a time on the monotonic clock."""
    settings = load_settings(folder / "no.env")
    started_s = time.monotonic()
    engine = load_engine(settings)
    try:
        model = engine.models.get(MODEL)
        (backend,) = engine.models.backends
        assert isinstance(backend, TorchBackend), "BACKEND is torch"
        engine.start()
        loaded_s = time.monotonic() - started_s
        shelf = Shelf(json.loads((folder / "words.json").read_text()))
        # Starts the device's libraries.
        engine.embed(MODEL, ["warm"])
        found = sweep(pace, shelf, functools.partial(run, engine, backend), 1, until_s)
    finally:
        engine.close()
    on_cuda = settings.device == "cuda"
    return {
        "device_name": torch.cuda.get_device_name() if on_cuda else settings.device,
        "device_mb": round(torch.cuda.max_memory_allocated() / 2**20) if on_cuda else None,
        "proof": str(model.proof),
        "tf32": torch.get_float32_matmul_precision() != "highest" or torch.backends.cudnn.allow_tf32,
        "loaded_s": round(loaded_s, 1),
        "points": found.points,
        "left_out": found.left_out,
    }


def main(folder: Path, until_s: float, pace: Pace) -> None:
    """Write what was measured, or the one line with which the service refuses to start."""
    output, sys.stdout = sys.stdout, sys.stderr
    try:
        found = measure(folder, until_s, pace)
    except StartError as error:
        found = {"refused": str(error)}
    json.dump(found, output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), QUICK if "quick" in sys.argv[3:] else Pace())
