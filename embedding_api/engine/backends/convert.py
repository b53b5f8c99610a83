"""Makes of a sentence-transformers model what the OpenVINO backend reads. Run as a program, in a process of its own.

Its argument is a `Job` as JSON; the last line of its output is an `Answer` as JSON. The libraries that it needs start
threads, which a master that forks must not have. It needs no network, no key and no token.
"""

import errno
import json
import logging
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from sentence_transformers.base.modules import Transformer

from embedding_api.engine.backends import Loaded, Route, modules, proof
from embedding_api.engine.backends import openvino_backend as served
from embedding_api.engine.backends import torch_backend as source
from embedding_api.engine.backends.layout import Layout, Packing, Padding
from embedding_api.engine.findings import UnservableError, in_a_line
from embedding_api.engine.work import Ids
from embedding_api.telemetry import library_warnings

# What the calibration reads when no texts are named.
_CALIBRATION_TEXTS = Path(__file__).with_name("calibration.txt")

# Fills most windows, and is longer than the reach of local attention that models are known to have.
_LONG_TEXT = " ".join(map(str, range(400)))

# The length of padded rows is a multiple of this: see docs/decisions/0004.
_STEP = 16


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
    """How it went: done where the first three are empty.

    Attributes:
        unservable: Why no backend can serve this model; it would be the same the next time, as for `refusal`.
        refusal: Why this model cannot be converted.
        problem: What else went wrong.
        errno: The system's number for that, if it has one.
        warnings: What libraries warned of while they converted it, a line each.
    """

    unservable: str = ""
    refusal: str = ""
    problem: str = ""
    errno: int = 0
    warnings: tuple[str, ...] = ()


class _RefusedError(Exception):
    """The model is of a kind that is not converted."""


def main(job: Job) -> Answer:
    """Converts a model; see `Answer`."""
    with library_warnings.collected() as warnings:
        answer = _answer(job)
    return replace(answer, warnings=tuple(warnings))


def _answer(job: Job) -> Answer:
    try:
        loaded = source.load(
            Path(job.source),
            device="cpu",
            precision="float32",
            n_threads=1,
            trust_remote_code=job.trust_remote_code,
            allow_pickle=job.allow_pickle,
        )
    except UnservableError as error:
        return Answer(unservable=str(error))
    except Exception as error:  # noqa: BLE001 - a program's last resort: whatever it is goes to the operator in a line
        return Answer(problem=f"it cannot be loaded ({in_a_line(error)})")
    try:
        _convert(loaded, job)
    except _RefusedError as error:
        return Answer(refusal=str(error))
    except Exception as error:  # noqa: BLE001 - the same
        return Answer(problem=f"its conversion failed ({in_a_line(error)})", errno=getattr(error, "errno", None) or 0)
    return Answer()


def _convert(loaded: Loaded, job: Job) -> None:
    routes = loaded.routes
    route, target = routes[None], Path(job.target)
    backend, reader = route.backend, route.reader
    if any(other.backend is not backend for other in routes.values()):
        raise _RefusedError("its queries or documents go through it in a way of their own")
    if not isinstance(backend, source.TorchBackend) or not isinstance(backend.feed, source.Padded):
        raise _RefusedError("it looks vectors up and computes next to nothing, so that it would gain nothing")
    if any(prompt.n_tokens for each in routes.values() for prompt in (each.prompt, *each.prompts.values())):
        raise _RefusedError("its pooling leaves the prompt out, and must be told of it with each batch")
    model, layout = _converted(route, backend, backend.feed.padding.pad_id)
    if job.quantise:
        file = Path(job.calibration_texts) if job.calibration_texts else _CALIBRATION_TEXTS
        texts = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        readings = reader.read(texts, route.prompt).tokens
        model = quantise(model, [list(layout([tokens.ids])) for tokens in readings])
    _save(model, target / served.MODEL)
    reader.save(target)
    np.save(target / served.REFERENCE, np.stack([each.reference for each in routes.values()]))
    description = {
        "dim": backend.dim,
        "prompts": {name: prompt.text for name, prompt in route.prompts.items()},
        "routes": [(task, each.prompt.text) for task, each in routes.items()],
        "layout": {"name": type(layout).__name__, **layout._asdict()},
        "findings": loaded.findings,
    }
    (target / served.DESCRIPTION).write_text(json.dumps(description))


def _converted(route: Route, backend: source.TorchBackend, pad_id: int) -> tuple[openvino.Model, Packing | Padding]:
    """The model for packed texts if it bears them, and for padded rows otherwise."""
    window = route.reader.window
    transformer = backend.model[0]
    if isinstance(transformer, Transformer) and _attends_to_all(transformer):
        packing = Packing(pad_id, modules.first_position(transformer))
        try:
            model = openvino.convert_model(_export(_Packed(backend), packing, window))
            if _equals(model, packing, route, backend):
                return model, packing
        except Exception as error:  # noqa: BLE001 - a model can be at odds with it in any way
            _raise_passing(error)
            traceback.print_exc()
    # To the right whatever side the model was taught with: a row that begins with padding has positions that may look
    # at nothing, which become NaN in OpenVINO. The proof tells whether a model bears it.
    padding = Padding(pad_id, step=_STEP, window=window)
    try:
        model = openvino.convert_model(_export(_Padded(backend), padding._replace(step=1), window))
        equals = _equals(model, padding, route, backend)
    except Exception as error:
        _raise_passing(error)
        raise _RefusedError(f"it cannot be exported ({in_a_line(error)})") from error
    if not equals:
        raise _RefusedError("what was exported does not give the same vectors")
    return model, padding


def _attends_to_all(transformer: Transformer) -> bool:
    """Whether each token may look at every other of its text; a mask of ours would take sliding windows away."""
    config = transformer.model.config
    limits = ("sliding_window", "local_attention", "attention_window", "attention_chunk_size")
    return not any(getattr(config, limit, None) for limit in limits)


def _equals(model: openvino.Model, layout: Layout, route: Route, backend: source.TorchBackend) -> bool:
    """Whether the model gives the reference in float32: all probe texts in one batch, and a long one in company."""
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    probes = [tokens.ids for tokens in route.reader.read(proof.PROBE_TEXTS, route.prompt).tokens]
    company = [route.reader.read([_LONG_TEXT]).tokens[0].ids, probes[0]]
    return all(
        proof.prove(reference, compiled(list(layout(batch)))[0], "float32").holds
        for batch, reference in [
            (probes, route.reference),
            (company, np.concatenate([backend.embed([ids], 0) for ids in company])),
        ]
    )


def _raise_passing(error: Exception) -> None:
    """Raises what may be different the next time, so that it is not taken for the model's fault."""
    # torch tells a lack of memory as a RuntimeError.
    if isinstance(error, MemoryError | OSError) or "allocate" in str(error):
        raise error


def _save(model: openvino.Model, path: Path) -> None:
    """Writes a model; on a full disk OpenVINO says no more than "iostream error"."""
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(errno.ENOSPC, "cannot be written to, most likely because the disk is full") from error


class _Chain(torch.nn.Module):
    """A module chain as a function of what a layout makes of a batch; gives vectors, float32, (n_texts, dim)."""

    def __init__(self, backend: source.TorchBackend) -> None:
        super().__init__()
        self.model = backend.model
        self.dim = backend.dim

    def forward(self, *arrays: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.embed(*arrays)["sentence_embedding"]
        return vectors[:, : self.dim]

    def embed(self, *arrays: torch.Tensor) -> dict[str, Any]:
        raise NotImplementedError


class _Padded(_Chain):
    """Of `Rows`."""

    def embed(self, *arrays: torch.Tensor) -> dict[str, Any]:
        ids, mask = arrays
        features: dict[str, Any] = self.model({"input_ids": ids, "attention_mask": mask, "modality": "text"})
        return features


class _Packed(_Chain):
    """Of a `Pack`: the Transformer reads one row, and what follows it reads rows of texts again."""

    def embed(self, *arrays: torch.Tensor) -> dict[str, Any]:
        ids, positions, segments, cells, mask = arrays
        transformer, *rest = self.model
        is_same_text = segments[:, None, :, None] == segments[:, None, None, :]
        features: dict[str, Any] = {
            "input_ids": ids,
            "position_ids": positions,
            # Added to how much one token looks at another: so little that nothing is left of it.
            "attention_mask": torch.where(is_same_text, 0.0, -1e9),
            "modality": "text",
        }
        tokens = transformer(features)["token_embeddings"]
        features = {"input_ids": ids[0][cells], "token_embeddings": tokens[0][cells], "attention_mask": mask}
        for module in rest:
            features = module(features)
        return features


def _export(chain: _Chain, layout: Layout, window: int | None) -> torch.export.ExportedProgram:
    """The chain for any number of texts of any length."""
    # Lengths so that no size stands for two things, and padding, so that no branch is taken for all cases.
    longest = min(20, window or 20)
    example = layout([np.ones(n_tokens, dtype=np.int64) for n_tokens in (longest, 3, longest // 2)])
    # A padded row has no more positions than the model, all rows of a pack together may have more.
    most = window if isinstance(layout, Padding) else None
    sizes: dict[int, Any] = {}
    shapes = tuple(
        {
            axis: sizes.setdefault(size, torch.export.Dim(f"size_{size}", max=most if axis else None))
            for axis, size in enumerate(array.shape)
            if size > 1
        }
        for array in example
    )
    with torch.no_grad():
        return torch.export.export(chain.eval(), tuple(map(torch.from_numpy, example)), dynamic_shapes=(shapes,))


def quantise(model: openvino.Model, batches: Sequence[Sequence[Ids]]) -> openvino.Model:
    """The model with its linear layers, and queries with keys, multiplied in 8-bit integers.

    Ranges come from running these texts through it in float32, one at a time. What stays in floating point (softmax,
    norms, pooling) follows the hint that the model is compiled with.

    Args:
        model: What the layout's arrays are read by; may be changed.
        batches: For each text, alone, its arrays.
    """
    import nncf
    import rich

    # Its progress bars would go where our answer goes.
    nncf.set_log_level(logging.ERROR)
    rich.get_console().quiet = True
    # Both choices were measured: see docs/decisions/0006.
    quantised: openvino.Model = nncf.quantize(
        model,
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(batches),
        advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
    )
    return quantised


if __name__ == "__main__":
    print(json.dumps(asdict(main(Job(**json.loads(sys.argv[1]))))))  # noqa: T201 - its answer to whoever ran it
