"""The OpenVINO backend: a converted model, compiled for this CPU. It imports neither torch nor transformers.

The master compiles the model and runs it once. The workers that it forks share what it compiled.
"""

import ctypes
import functools
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_api.engine.backends import Loaded, Route, Routes, UnfitError, tbb
from embedding_api.engine.backends.bodies import Bodies
from embedding_api.engine.backends.layout import CPU_BATCH_TOKENS, Packing, Padding, rounded_up
from embedding_api.engine.backends.text import Prompt, Reader
from embedding_api.engine.findings import Finding, in_a_line
from embedding_api.engine.work import Ids, Result
from embedding_api.machine import analytics, memory

if TYPE_CHECKING:
    import openvino

logger = logging.getLogger(__name__)

# The files of a converted model; `convert.py` writes them. The weights of MODEL are beside it, in model.bin.
MODEL, REFERENCE, DESCRIPTION = "model.xml", "reference.npy", "description.json"

# With pinning every worker would compute on the same core.
_OPTIONS = {"ENABLE_CPU_PINNING": False}
# One stream: the limit of TBB says how many threads an inference has. The stream's own thread does not survive a fork,
# and is not needed, since inference runs in the thread that asks for it.
_MANY_THREADS = {**_OPTIONS, "NUM_STREAMS": "1"}
# No stream, and one thread: 7 MB less of each worker's memory.
_ONE_THREAD = {**_OPTIONS, "NUM_STREAMS": "0", "INFERENCE_NUM_THREADS": "1"}

# float32 needs its hint too: without one OpenVINO computes in bfloat16 where the CPU can. In an int8 model the hint is
# for the parts that stay in floating point, which are faster in bfloat16.
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}


# TBB mails tasks to the threads that an inference may have. Where a limit keeps those from coming, nobody takes the
# mail, about 20 KB a batch, until the thread that wrote it ends.
_MAX_UNTAKEN_BATCHES = 30

# For each new shape of batch OpenVINO compiles code: 2 to 5 ms, and up to 1 MB that workers share if the master did it.
# This time is enough for all shapes of a small model.
_WARM_UP_S = 1.5


def load(folder: Path, *, precision: str, n_threads: int = 1) -> Loaded:
    """Load a converted model for a CPU.

    Args:
        folder: A whole entry of the cache, which `convert.py` made.
        precision: float32, bfloat16 or int8. int8 needs an entry that was made in int8.
        n_threads: The most threads that a batch will take.

    Raises:
        UnfitError: OpenVINO cannot compile the model.
    """
    description = json.loads((folder / DESCRIPTION).read_bytes())
    reader = Reader.load(folder)
    core = _core()
    hint = _HINTS[precision]
    if hint == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        hint = "f32"
        if precision == "bfloat16":
            logger.warning(
                "this CPU has no bfloat16 instructions; the model computes in float32. Set PRECISION=float32 to "
                "silence this warning."
            )
            precision = "float32"
    memory.map_large_pieces()
    bodies = Bodies(reader.window)
    try:
        model = bodies.model(core.read_model(folder / MODEL))
        has_threads = n_threads > 1 and tbb.limit() is not None
        threads = {**_MANY_THREADS, "INFERENCE_NUM_THREADS": n_threads} if has_threads else _ONE_THREAD
        compiled = core.compile_model(model, "CPU", {**threads, "INFERENCE_PRECISION_HINT": hint})
    except RuntimeError as error:
        raise UnfitError(f"OpenVINO cannot compile it: {in_a_line(error)}") from error
    layout = _layout(**description["layout"])
    n_most = _MAX_UNTAKEN_BATCHES if has_threads else sys.maxsize
    backend = OpenVinoBackend(compiled, bodies, layout, n_most, precision=precision, dim=description["dim"])
    prompts = {name: Prompt(text) for name, text in description["prompts"].items()}
    routes: Routes = {
        task: Route(reader, backend, Prompt(text), prompts, reference)
        for (task, text), reference in zip(description["routes"], np.load(folder / REFERENCE), strict=True)
    }
    return Loaded(routes, [Finding(*finding) for finding in description["findings"]])


@functools.cache
def _core() -> "openvino.Core":
    """Return the only core of the process, which is kept until the process ends.

    Each core gives its thread a stack for signals. If the first of two cores is destroyed first, the second one
    restores a stack that no longer exists, and the next signal crashes the process.
    """
    analytics.block()
    # Before TBB is loaded with OpenVINO, which may start threads as soon as it compiles.
    tbb.limit()
    import openvino

    core = openvino.Core()
    _keep(core)
    return core


def _keep(item: object) -> None:
    """Keep an object of OpenVINO until the process ends: its destruction in a forked process can crash."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(item))


def _layout(name: str, **fields: Any) -> Packing | Padding:
    return Packing(**fields) if name == "Packing" else Padding(**fields)


class OpenVinoBackend:
    """Runs a compiled model; see `Backend` for the other parts.

    Args:
        compiled: Reads `Bodies.inputs`, and returns vectors, float32, (n_texts, dim).
        bodies: The bodies of the model.
        layout: The layout that the model was converted for.
        max_batches_per_thread: See `Backend`.
        precision: The arithmetic of the model.
        dim: Components of a vector.
    """

    name = "openvino"
    target_batch_tokens = CPU_BATCH_TOKENS

    def __init__(
        self,
        compiled: "openvino.CompiledModel",
        bodies: Bodies,
        layout: Packing | Padding,
        max_batches_per_thread: int,
        *,
        precision: str,
        dim: int,
    ) -> None:
        self._compiled = compiled
        self._request = compiled.create_infer_request()
        self._bodies = bodies
        self._layout = layout
        self.max_batches_per_thread = max_batches_per_thread
        self.precision = precision
        self.dim = dim

    def warm_up(self, window: int | None) -> None:
        """Compute one text on each body, and one batch of each shape, the fullest first, until _WARM_UP_S is over."""
        end_s = time.monotonic() + _WARM_UP_S
        longest = min(window or CPU_BATCH_TOKENS, CPU_BATCH_TOKENS)
        batches = sorted(_shapes(self._layout, longest), key=sum, reverse=True)
        for lengths in [*([length] for length in self._bodies.lengths), *batches]:
            if time.monotonic() > end_s:
                return
            self.compute([np.zeros(length, dtype=np.int64) for length in lengths], 0)

    def prepare(self, n_threads: int) -> None:
        """Keep the objects that the master made, and compute a text, a small batch and a full one.

        A forked process copies memory when it first writes to it, so that the first batch takes several times as long.
        """
        # Without them a process with a stream hangs when it exits.
        _keep(self._compiled)
        _keep(self._request)
        self.use_threads(n_threads)
        longest = self._bodies.lengths[-1]
        for lengths in ([longest], [1] * 2, [longest] * (CPU_BATCH_TOKENS // longest)):
            self.compute([np.zeros(length, dtype=np.int64) for length in lengths], 0)

    def use_threads(self, n_threads: int) -> None:
        """See `Backend.use_threads`."""
        if (limit := tbb.limit()) is not None:
            limit.raise_to(n_threads)

    def n_computed(self, n_texts: int, longest: int, n_tokens: int) -> int:
        """See `Backend.n_computed`."""
        return self._bodies.length(n_texts, n_tokens) or self._layout.n_computed(n_texts, longest, n_tokens)

    def compute(self, inputs: Sequence[Ids], n_prompt_tokens: int) -> Result:
        """See `Backend.compute`. Models whose pooling leaves prompts out are not converted."""
        if n_prompt_tokens:
            raise ValueError(f"n_prompt_tokens={n_prompt_tokens} for a model that pools all tokens; this is a bug")
        length = self._bodies.length(len(inputs), len(inputs[0]))
        arrays = self._bodies.inputs(self._layout(inputs, length), length)
        # OpenVINO reads the inputs where they are. The next batch overwrites the memory of the output: copy it.
        vectors = self._request.infer(arrays, share_inputs=True, share_outputs=True)[0].copy()
        memory.trim_regularly()
        return Result(np.asarray(vectors, dtype=np.float32))


def _shapes(layout: Packing | Padding, longest: int) -> Iterator[list[int]]:
    """Yield the lengths of the texts of one batch for each shape that makes OpenVINO compile much.

    Args:
        layout: The layout of the model.
        longest: The most tokens of a text.
    """
    if isinstance(layout, Packing):
        for n_tokens in sorted({rounded_up(n_tokens) for n_tokens in range(1, CPU_BATCH_TOKENS + 1)}):
            n_texts, rest = divmod(n_tokens, min(longest, n_tokens // 2))
            yield [min(longest, n_tokens // 2)] * n_texts + [rest] * (rest > 0)
    else:
        for length in range(layout.step, longest + 1, layout.step):
            for n_texts in range(1, CPU_BATCH_TOKENS // length + 1):
                yield [length] * n_texts
