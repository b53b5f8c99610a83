"""The OpenVINO backend: a converted model, compiled for this CPU. Imports openvino, and neither torch nor transformers.

Compiled and run once in the master, it is shared by the workers that are forked from it.
"""

import ctypes
import functools
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from embedding_api.engine.backends import Loaded, Route, Routes, UnfitError
from embedding_api.engine.backends.layout import Packing, Padding, rounded_up
from embedding_api.engine.backends.text import Prompt, Reader
from embedding_api.engine.findings import Finding
from embedding_api.engine.work import Ids, Vectors
from embedding_api.machine import memory

logger = logging.getLogger(__name__)

# What a converted model consists of; `convert.py` writes it. MODEL has its weights beside it, in a file of the same
# name that ends in .bin.
MODEL, REFERENCE, DESCRIPTION = "model.xml", "reference.npy", "description.json"

# No stream: inference runs in the thread that asks for it. A stream is a thread, which no fork survives: with one a
# worker computes but hangs when it exits, with two it hangs at once. One thread and no pinning: with it every worker
# computes on the same core.
_OPTIONS = {"NUM_STREAMS": "0", "INFERENCE_NUM_THREADS": "1", "ENABLE_CPU_PINNING": False}

# Named for float32 too: without a hint OpenVINO takes bfloat16 where the CPU has it. What int8 leaves is faster so.
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}

# Tokens that are computed for a batch: see docs/decisions/0005.
_BATCH_TOKENS = 256
_TRIM_EVERY = 64

# What OpenVINO compiles for a shape of batch that it sees for the first time takes 2 to 5 ms and up to 1 MB. What the
# master has seen its workers share; so many seconds are enough for all shapes of a small model.
_WARM_UP_S = 1.5


def load(folder: Path, *, precision: str) -> Loaded:
    """Loads what `convert.py` made, for a CPU.

    Args:
        folder: A whole entry of the cache.
        precision: float32, bfloat16 or int8; the latter is what the entry itself was made in.

    Raises:
        UnfitError: OpenVINO cannot compile it.
    """
    description = json.loads((folder / DESCRIPTION).read_bytes())
    reader = Reader.load(folder)
    core = _core()
    hint = _HINTS[precision]
    if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        hint = "f32"
        if precision == "bfloat16":
            logger.warning("this CPU has no bfloat16 instructions; computing in float32, as PRECISION=float32 does")
            precision = "float32"
    memory.map_large_pieces()
    try:
        compiled = core.compile_model(folder / MODEL, "CPU", {**_OPTIONS, "INFERENCE_PRECISION_HINT": hint})
    except RuntimeError as error:
        raise UnfitError(f"OpenVINO cannot compile it: {next(iter(str(error).splitlines()), '')}") from error
    backend = OpenVinoBackend(compiled, _layout(**description["layout"]), precision=precision, dim=description["dim"])
    prompts = {name: Prompt(text) for name, text in description["prompts"].items()}
    routes: Routes = {
        task: Route(reader, backend, Prompt(text), prompts, reference)
        for (task, text), reference in zip(description["routes"], np.load(folder / REFERENCE), strict=True)
    }
    return Loaded(routes, [Finding(*finding) for finding in description["findings"]])


@functools.cache
def _core() -> openvino.Core:
    """The only one in the process, kept until it is gone.

    Each gives its thread a stack for signals. When the first of two ends first, the second gives back a stack that is
    no more, and the next signal is a crash.
    """
    core = openvino.Core()
    _keep(core)
    return core


def _keep(item: object) -> None:
    """Keeps what OpenVINO made until the process is gone: taking it down in a fork can end in a crash."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(item))


def _layout(name: str, **fields: Any) -> Packing | Padding:
    return Packing(**fields) if name == "Packing" else Padding(**fields)


def _shapes(layout: Packing | Padding, longest: int) -> Iterator[list[int]]:
    """The lengths of the texts of a batch of each shape that OpenVINO compiles something large for."""
    if isinstance(layout, Packing):
        for n_tokens in sorted({rounded_up(n_tokens) for n_tokens in range(1, _BATCH_TOKENS + 1)}):
            n_texts, rest = divmod(n_tokens, longest)
            yield [longest] * n_texts + [rest] * (rest > 0)
    else:
        for length in range(layout.step, longest + 1, layout.step):
            for n_texts in range(1, _BATCH_TOKENS // length + 1):
                yield [length] * n_texts


class OpenVinoBackend:
    """Runs a compiled model; see `Backend` for what the parts mean.

    Args:
        compiled: Reads what the layout gives, and gives vectors, float32, (n_texts, dim).
        layout: What the model was converted for.
    """

    name = "openvino"
    max_batch_tokens = _BATCH_TOKENS

    def __init__(
        self, compiled: openvino.CompiledModel, layout: Packing | Padding, *, precision: str, dim: int
    ) -> None:
        self._request = compiled.create_infer_request()
        self.layout = layout
        self._n_batches = 0
        self.precision = precision
        self.dim = dim

    def warm_up(self, window: int | None) -> None:
        """Compute one batch of each shape, the fullest first, until _WARM_UP_S is over."""
        end_s = time.monotonic() + _WARM_UP_S
        longest = min(window or _BATCH_TOKENS, _BATCH_TOKENS)
        for lengths in sorted(_shapes(self.layout, longest), key=sum, reverse=True):
            if time.monotonic() > end_s:
                return
            self.embed([np.zeros(length, dtype=np.int64) for length in lengths], 0)

    def prepare(self) -> None:
        """Keeps what the master compiled."""
        _keep(self._request)

    def n_computed(self, n_texts: int, longest: int, n_tokens: int) -> int:
        """See `Layout.n_computed`."""
        return self.layout.n_computed(n_texts, longest, n_tokens)

    def embed(self, batch: Sequence[Ids], n_prompt_tokens: int) -> Vectors:
        """See `Backend.embed`; models whose prompts are not pooled are not converted."""
        if n_prompt_tokens:
            raise ValueError(f"n_prompt_tokens={n_prompt_tokens} for a model that pools all tokens; this is a bug")
        # Shared with OpenVINO, not copied; its output lies in memory that the next batch overwrites.
        vectors = self._request.infer(list(self.layout(batch)), share_inputs=True, share_outputs=True)[0].copy()
        self._n_batches += 1
        if self._n_batches % _TRIM_EVERY == 0:
            memory.trim()
        return np.asarray(vectors, dtype=np.float32)
