"""Makes of a sentence-transformers model what the OpenVINO backend reads. Run as a program, in a process of its own.

Its only argument is a `Job` as JSON, the last line of its output an `Answer` as JSON. The libraries that it needs start
threads, which a master that forks must not have. It needs no network, no key and no token.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import openvino
import torch

from embedding_api.engine.arrays import Ids
from embedding_api.engine.backends import Loaded
from embedding_api.engine.backends import openvino as served
from embedding_api.engine.backends import torch as source
from embedding_api.engine.backends.padding import Padding

# What the calibration reads when no texts are named.
_CALIBRATION_TEXTS = Path(__file__).parents[1] / "calibration.txt"


@dataclass(frozen=True)
class Job:
    """What to convert.

    Attributes:
        source: The model's folder.
        target: An empty folder for the result.
        quantise: Whether to make int8 of it, which needs nncf.
        calibration_texts: A file of texts, one a line; empty for this package's own.
        trust_remote_code: Whether Python files that come with the model may run.
        allow_pickle: Whether weights may come from pickle files.
    """

    source: str
    target: str
    quantise: bool
    calibration_texts: str
    trust_remote_code: bool
    allow_pickle: bool


@dataclass(frozen=True)
class Answer:
    """How it went: done where both are empty.

    Attributes:
        refusal: Why this model cannot be converted; it would be the same the next time.
        problem: What else went wrong.
    """

    refusal: str = ""
    problem: str = ""


class _RefusedError(Exception):
    """The model is of a kind that is not converted."""


def main(job: Job) -> Answer:
    """Converts a model; see `Answer`."""
    try:
        loaded = source.load(
            Path(job.source),
            device="cpu",
            precision="float32",
            n_threads=1,
            trust_remote_code=job.trust_remote_code,
            allow_pickle=job.allow_pickle,
        )
    except Exception as error:  # noqa: BLE001 - a program's last resort: whatever it is goes to the operator in a line
        return Answer(problem=f"it cannot be loaded ({_line(error)})")
    try:
        _convert(loaded, job)
    except _RefusedError as error:
        return Answer(refusal=str(error))
    except Exception as error:  # noqa: BLE001 - the same
        return Answer(problem=f"its conversion failed ({_line(error)})")
    return Answer()


def _convert(loaded: Loaded, job: Job) -> None:
    backend, reader, target = loaded.backend, loaded.reader, Path(job.target)
    if not isinstance(backend, source.TorchBackend) or not isinstance(backend.feed, source.Padded):
        raise _RefusedError("it looks vectors up and computes next to nothing, so that it would gain nothing")
    if reader.n_prompt_tokens:
        raise _RefusedError("its pooling leaves the prompt out, and must be told of it with each batch")
    try:
        model = openvino.convert_model(_export(backend, reader.window))
    except MemoryError:
        raise
    except Exception as error:
        raise _RefusedError(f"it cannot be exported ({_line(error)})") from error
    pad_id = backend.feed.padding.pad_id
    if job.quantise:
        file = Path(job.calibration_texts) if job.calibration_texts else _CALIBRATION_TEXTS
        texts = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        model = quantise(model, [list(Padding(pad_id)([tokens.ids])) for tokens in reader.read(texts).tokens])
    _save(model, target / served.MODEL)
    reader.save(target)
    np.save(target / served.REFERENCE, loaded.reference)
    description = {"dim": backend.dim, "pad_id": pad_id, "prompts": loaded.prompts}
    (target / served.DESCRIPTION).write_text(json.dumps(description))


def _save(model: openvino.Model, path: Path) -> None:
    """Writes a model; on a full disk OpenVINO says no more than "iostream error"."""
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(f"{path.parent} cannot be written to, most likely because its disk is full") from error


class _Chain(torch.nn.Module):
    """A module chain as a function: ids and mask, int64, (n_texts, length), to vectors, float32, (n_texts, dim)."""

    def __init__(self, backend: source.TorchBackend) -> None:
        super().__init__()
        self.model = backend.model
        self.dim = backend.dim

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.model({"input_ids": ids, "attention_mask": mask, "modality": "text"})[
            "sentence_embedding"
        ]
        return vectors[:, : self.dim]


def _export(backend: source.TorchBackend, window: int | None) -> torch.export.ExportedProgram:
    """The chain for any number of texts of any length up to the window."""
    # Numbers of rows and columns that stand for nothing else, and padding, so that no branch is taken for all cases.
    n_texts, length = 3, min(17, window or 17)
    ids = torch.ones((n_texts, length), dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    mask[2, length // 4 :] = 0
    rows, columns = torch.export.Dim("rows"), torch.export.Dim("columns", max=window)
    shapes = {"ids": {0: rows, 1: columns}, "mask": {0: rows, 1: columns}}
    with torch.no_grad():
        return torch.export.export(_Chain(backend).eval(), (ids, mask), dynamic_shapes=shapes)


def quantise(model: openvino.Model, batches: Sequence[Sequence[Ids]]) -> openvino.Model:
    """The model with its matrices multiplied in 8-bit integers, scaled by what these texts make of them.

    Args:
        model: Reads ids and mask.
        batches: For each text its ids and mask, int64, (1, n_tokens).
    """
    import nncf

    # Texts of a model's own language and length: SmoothQuant moves the outliers of what flows into the weights.
    quantised: openvino.Model = nncf.quantize(
        model, nncf.Dataset(batches), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches)
    )
    return quantised


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:300]}"


if __name__ == "__main__":
    print(json.dumps(asdict(main(Job(**json.loads(sys.argv[1]))))))  # noqa: T201 - its answer to whoever ran it
