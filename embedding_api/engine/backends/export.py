"""Export the modules of a sentence-transformers model to OpenVINO, and quantise them. Imports torch and openvino."""

import errno
import logging
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from sentence_transformers.base.modules import Transformer

from embedding_api.engine.backends import Route, Routes, UnfitError, modules, proof
from embedding_api.engine.backends.layout import Packing, Padding
from embedding_api.engine.backends.torch_backend import TorchBackend
from embedding_api.engine.findings import in_a_line, lacks_threads
from embedding_api.engine.work import Ids

# A text that fills most windows, and is longer than the reach of the local attention of known models.
_LONG_TEXT = " ".join(map(str, range(400)))

# The length of padded rows is a multiple of this number: see docs/decisions/0004.
_STEP = 16


def exported(routes: Routes) -> tuple[openvino.Model, Packing | Padding]:
    """Return the model for packed texts if it gives the same vectors, and otherwise the model for padded rows.

    Args:
        routes: The routes of a model that torch loaded.

    Raises:
        UnfitError: The model is of a kind that OpenVINO cannot serve, or gains nothing from it.
        Exception: A failure that another conversion may not have, such as a lack of memory or threads.
    """
    route = routes[None]
    backend = route.backend
    if any(other.backend is not backend for other in routes.values()):
        raise UnfitError("its queries or documents go through it in a way of their own")
    if not isinstance(backend, TorchBackend) or not isinstance(backend.layout, Padding):
        raise UnfitError("it only looks vectors up, so that OpenVINO would gain nothing")
    if any(prompt.n_tokens for each in routes.values() for prompt in (each.prompt, *each.prompts.values())):
        raise UnfitError("its pooling leaves the prompt out, and needs the length of the prompt with each batch")
    pad_id, window, transformer = backend.layout.pad_id, route.reader.window, backend.model[0]
    layouts: list[Packing | Padding] = []
    if isinstance(transformer, Transformer) and _attends_to_all(transformer):
        layouts.append(Packing(pad_id, modules.first_position(transformer)))
    # Padding on the right, on whichever side the model had it in training: in a row that begins with padding, OpenVINO
    # computes NaN for positions that attend to nothing. The comparison finds models that need the other side.
    layouts.append(Padding(pad_id, step=_STEP, window=window))
    for layout in layouts:
        try:
            model = openvino.convert_model(_export(backend, layout, window))
            _choose_first_of_equals(model)
            if _gives_same_vectors(model, layout, route, backend):
                return model, layout
            failure = "the exported model does not give the same vectors"
        except Exception as error:  # an export can break a model in any way
            # The cache must not keep what another conversion may not have. torch has a RuntimeError for want of memory.
            if isinstance(error, MemoryError | OSError) or "allocate" in str(error) or lacks_threads(error):
                raise
            traceback.print_exc()
            failure = f"it cannot be exported ({in_a_line(error)})"
    raise UnfitError(failure)


def quantised(model: openvino.Model, batches: Sequence[Sequence[Ids]]) -> openvino.Model:
    """Return the model with its linear layers, and the products of queries and keys, in 8-bit integers.

    The embeddings of tokens stay in floating point: OpenVINO would unpack them once for each of `bodies`.

    The calibration runs the texts through the model in float32, one at a time. The other operations (softmax, norms,
    pooling) stay in floating point, in the precision that the model is compiled with.

    Args:
        model: Reads the arrays of the layout; may be changed.
        batches: The layout's arrays for each text alone.
    """
    import nncf
    import rich

    # Its progress bars would go to the output of the program.
    nncf.set_log_level(logging.ERROR)
    rich.get_console().quiet = True
    # The preset and the missing bias correction were measured: see docs/decisions/0006.
    result: openvino.Model = nncf.quantize(
        model,
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(types=["Gather"]),
        advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
    )
    return result


def save(model: openvino.Model, path: Path) -> None:
    """Write a model.

    Raises:
        OSError: The file cannot be written; OpenVINO itself says no more than "iostream error".
    """
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(errno.ENOSPC, "cannot be written to, most likely because the disk is full") from error


def _choose_first_of_equals(model: openvino.Model) -> None:
    """Let a search for the largest value find the first of equal ones, as torch does; last-token pooling needs it.

    OpenVINO finds another one where the length is static.
    """
    for node in model.get_ops():
        if node.get_type_name() == "TopK":
            node.set_attribute("sort", "value")
            node.set_attribute("stable", True)  # noqa: FBT003 - it has no keywords


def _attends_to_all(transformer: Transformer) -> bool:
    """Return True if each token attends to all tokens of its text. The mask of a pack would replace sliding windows."""
    config = transformer.model.config
    limits = ("sliding_window", "local_attention", "attention_window", "attention_chunk_size")
    return not any(getattr(config, limit, None) for limit in limits)


def _gives_same_vectors(model: openvino.Model, layout: Packing | Padding, route: Route, backend: TorchBackend) -> bool:
    """Compare the model with torch in float32: all probe texts in one batch, and a long text beside a short one."""
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    probes = [tokens.ids for tokens in route.reader.read(proof.PROBE_TEXTS, route.prompt).tokens]
    pair = [route.reader.read([_LONG_TEXT]).tokens[0].ids, probes[0]]
    return all(
        proof.prove(reference, compiled(list(layout(batch)))[0], "float32").holds
        for batch, reference in [
            (probes, route.reference),
            (pair, np.concatenate([backend.compute([ids], 0).values for ids in pair])),
        ]
    )


class _Modules(torch.nn.Module):
    """The modules of a model as a function from a layout's arrays to vectors, float32, (n_texts, dim)."""

    def __init__(self, backend: TorchBackend, layout: Packing | Padding) -> None:
        super().__init__()
        self.model = backend.model
        self.dim = backend.dim
        self.layout = layout

    def forward(self, *arrays: torch.Tensor) -> torch.Tensor:
        if isinstance(self.layout, Packing):
            features = _packed_features(self.model, *arrays)
        else:
            ids, mask = arrays
            features = self.model({"input_ids": ids, "attention_mask": mask, "modality": "text"})
        vectors: torch.Tensor = features["sentence_embedding"]
        return vectors[:, : self.dim]


def _packed_features(model: torch.nn.Sequential, *row: torch.Tensor) -> dict[str, Any]:
    """Return the features of a `PackedRow`: the Transformer reads one row, the others read one row a text."""
    ids, positions, segments, cells, mask = row
    transformer, *rest = model
    is_same_text = segments[:, None, :, None] == segments[:, None, None, :]
    features: dict[str, Any] = {
        "input_ids": ids,
        "position_ids": positions,
        # Added to the attention scores of two tokens: -1e9 leaves nothing of them.
        "attention_mask": torch.where(is_same_text, 0.0, -1e9),
        "modality": "text",
    }
    tokens = transformer(features)["token_embeddings"]
    features = {"input_ids": ids[0][cells], "token_embeddings": tokens[0][cells], "attention_mask": mask}
    for module in rest:
        features = module(features)
    return features


def _export(backend: TorchBackend, layout: Packing | Padding, window: int | None) -> torch.export.ExportedProgram:
    """Export the modules for any number of texts of any length."""
    # Lengths that differ, so that no size stands for two dimensions, and that need padding, so that torch does not
    # take a branch for granted.
    longest = min(20, window or 20)
    example = layout([np.ones(n_tokens, dtype=np.int64) for n_tokens in (longest, 3, longest // 2)])
    shapes = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(array.shape) if size > 1} for array in example
    )
    chain = _Modules(backend, layout).eval()
    with torch.no_grad():
        return torch.export.export(chain, tuple(map(torch.from_numpy, example)), dynamic_shapes=(shapes,))
