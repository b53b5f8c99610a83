"""The torch backend: runs the modules of a sentence-transformers model on token ids.

It never calls `encode` to serve. `encode` tokenizes texts again, takes some texts for file names or addresses of
pictures, and changes the tokenizer.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tqdm
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from embedding_api.engine.backends.layout import CPU_BATCH_TOKENS, Joining, Padding
from embedding_api.engine.work import Ids, Result
from embedding_api.machine import memory

# A GPU needs far more at once.
_GPU_BATCH_TOKENS = 16_384

# The number types of half the size, by the precision that names them.
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def prepare_process() -> None:
    """Set the process-wide options of torch and its friends. Call it before torch computes in a process that forks."""
    # A process that has ever used more than one OpenMP thread forks workers that hang. `TorchBackend.prepare` raises
    # the number after the fork.
    torch.set_num_threads(1)
    # oneDNN keeps what it compiles for each shape, between the memory of tensors, so that the heap grows and cannot
    # shrink. After 40 requests of 32 mixed texts a worker held over 80 MB of its own; without oneDNN 24 to 28 MB, for
    # 6 % of the throughput. It stays where there is no MKL to multiply instead, as on ARM.
    if torch.backends.mkl.is_available():  # type: ignore[no-untyped-call] # torch left it without types
        torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call] # the same
    # A GPU computes float32 in float32, too: TF32, which some images turn on by a variable, rounds to 10 bits. Sums of
    # float16 are in float32, because parts of a sum, added in float16, can overflow.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    # Progress bars start a thread, which does not survive a fork.
    transformers.utils.logging.disable_progress_bar()
    tqdm.tqdm.monitor_interval = 0


@dataclass(eq=False)
class TorchBackend:
    """Runs the modules of a sentence-transformers model; see `Backend` for the other parts.

    Args:
        model: The modules, on the CPU until `prepare`.
        layout: Makes the features that the first module reads.
        options: Further arguments of the model's call.
        precision: The arithmetic of the Transformer.
        dim: Components of a vector.
        device: Where the model computes: cpu, cuda or mps.
    """

    model: SentenceTransformer
    layout: Padding | Joining
    options: Mapping[str, Any]
    precision: str
    dim: int
    device: str
    name = "torch"
    # No limit: OpenMP keeps threads for each thread that computes.
    max_batches_per_thread = sys.maxsize

    def __post_init__(self) -> None:
        self.n_computed = self.layout.n_computed
        self.target_batch_tokens = CPU_BATCH_TOKENS if self.device == "cpu" else _GPU_BATCH_TOKENS

    def warm_up(self, window: int | None) -> None:
        """Do nothing: torch compiles nothing for a shape."""

    def prepare(self, n_threads: int) -> None:
        """Set the threads of the calling thread's OpenMP, and move the model to its device."""
        self.use_threads(n_threads)
        self.model.to(self.device)

    def use_threads(self, n_threads: int) -> None:
        """See `Backend.use_threads`."""
        torch.set_num_threads(n_threads)

    def compute(self, inputs: Sequence[Ids], n_prompt_tokens: int) -> Result:
        """See `Backend.compute`."""
        device = self.model.device
        features: dict[str, Any] = {
            name: torch.from_numpy(array).to(device) for name, array in self.layout(inputs)._asdict().items()
        }
        features["modality"] = "text"
        if n_prompt_tokens:
            features["prompt_length"] = n_prompt_tokens
        with torch.inference_mode():
            vectors = self.model(features, **self.options)["sentence_embedding"]
        memory.trim_regularly()
        return Result(vectors[:, : self.dim].float().cpu().numpy())


def halve(transformer: Transformer, precision: str) -> None:
    """Make a Transformer compute in a precision of HALVES and return float32.

    The modules after it do a thousandth of the work and keep float32: a vector that Normalize makes in bfloat16 is not
    of unit length.
    """
    for parameter in transformer.model.parameters():
        # Parameters only. Rounded frequencies of rotary positions, which are buffers, are off by radians after a
        # thousand tokens.
        parameter.data = parameter.data.to(HALVES[precision])
    transformer.register_forward_hook(lambda _module, _inputs, features: _to_float32(features))


def _to_float32(features: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in features.items()
    }
