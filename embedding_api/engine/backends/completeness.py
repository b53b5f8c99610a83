"""Compare a loaded model with its files: no weight is made up, none is lost, and all are finite numbers."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import PreTrainedModel, modeling_utils
from transformers.utils.loading_report import LoadStateDictInfo

from embedding_api.engine.findings import Finding, UnservableError, listed, warning
from embedding_api.engine.work import Vectors

# The names that transformers gives to the heads of models: parts that make something else than vectors of tokens. The
# files of a model that was first trained for another task hold a head, which an embedding does not need.
_HEADS = frozenset(
    {
        "cls", "lm_head", "mlm_head", "classifier", "pre_classifier", "score", "qa_outputs", "pooler", "predictions",
        "vocab_projector", "vocab_transform", "vocab_layer_norm", "discriminator_predictions", "generator_predictions",
        "generator_lm_head", "sop_classifier", "seq_relationship", "lm_predictions", "decoder", "head", "heads",
    }
)  # fmt: skip
# Buffers that are computed, not learned. Older versions of transformers saved them with the weights.
_BUFFERS = frozenset({"position_ids", "token_type_ids", "inv_freq", "masked_bias", "num_batches_tracked"})

# A function that returns the vectors of the probe texts on every way through a model, float32, (n_probe_texts, dim).
Encode = Callable[[], Sequence[Vectors]]


# The report of transformers about the weights that it loaded into each model.
Reports = dict[PreTrainedModel, LoadStateDictInfo]


@contextlib.contextmanager
def reports() -> Iterator[Reports]:
    """Collect the report about each model that is loaded in the block.

    Only `from_pretrained` returns the report, and sentence-transformers calls that. transformers also logs the report,
    as a table. In the block another function replaces the one that logs it.

    Raises:
        UnservableError: Weights of a model have another shape than its architecture needs.
    """
    found: Reports = {}
    silent = logging.Logger("silent", logging.CRITICAL)
    log_report = modeling_utils.log_state_dict_report

    def record(model: PreTrainedModel, *args: Any, loading_info: LoadStateDictInfo, **kwargs: Any) -> None:
        _refuse_mismatched(model, loading_info)
        found[model] = loading_info
        # It also raises an error for other failures.
        log_report(model, *args, loading_info=loading_info, **kwargs | {"logger": silent})

    modeling_utils.log_state_dict_report = record
    try:
        yield found
    finally:
        modeling_utils.log_state_dict_report = log_report


def compute_buffers(models: Iterable[PreTrainedModel]) -> list[Finding]:
    """Compute the buffers that a model's own code computes in its constructor, and that transformers leaves empty.

    transformers constructs a model without memory for weights. A buffer that is not saved, such as a table of rotary
    positions, then holds whatever was in memory. The architectures of transformers itself fill theirs.

    Args:
        models: The models that transformers loaded, whose buffers change.
    """
    findings = []
    for model in models:
        if type(model).__module__.startswith("transformers.") or not any(model.named_non_persistent_buffers()):
            continue
        computed = dict(type(model)(model.config).named_non_persistent_buffers())
        changed = [name for name, buffer in computed.items() if not torch.equal(model.get_buffer(name), buffer)]
        for name in changed:
            model.get_buffer(name).copy_(computed[name])
        if changed:
            findings.append(
                warning(
                    f"its own code computes {listed(changed)} when a model is made, and transformers does not when it "
                    "loads one; this service does, so that its vectors differ from those of sentence-transformers alone"
                )
            )
    return findings


def require_whole(
    model: SentenceTransformer, found: Reports, encode: Encode, vectors: Sequence[Vectors]
) -> list[Finding]:
    """Refuse a model whose vectors depend on weights that its files do not hold.

    Args:
        model: The loaded model.
        found: The reports about the parts of it that transformers loaded.
        encode: Returns the vectors of the probe texts.
        vectors: What `encode` returns for the model as it is.

    Returns:
        Further facts that the operator should know.

    Raises:
        UnservableError: Weights are missing, or are NaN or infinity.
    """
    findings = _broken(model, vectors)
    findings += [finding for part, info in found.items() for finding in _unused(part, info)]
    if any(isinstance(each, Transformer) and each.model not in found for each in model.modules()):
        findings.append(warning("its own code loads its weights; nobody can check that its files hold all of them"))
    for part, info in found.items():
        missing = info.missing_keys
        if missing and (needed := _with_effect(part, missing, encode, vectors)):
            raise _missing(part, info, needed)
        if heads := {name for name in missing if _is_head(name)}:
            findings.append(Finding(logging.INFO, f"weights that no vector depends on are missing: {listed(heads)}"))
        if others := set(missing) - heads:
            findings.append(
                warning(
                    f"weights are missing and so are random numbers, with no effect on the vectors of a few texts: "
                    f"{listed(others)}; get the model's files again"
                )
            )
    return findings


def _refuse_mismatched(model: PreTrainedModel, info: LoadStateDictInfo) -> None:
    if info.mismatched_keys:
        name, in_file, wanted = min(info.mismatched_keys)
        raise UnservableError(
            f"{len(info.mismatched_keys)} of its weights have another shape in its files than config.json gives them "
            f"in {type(model).__name__}: {name} is {tuple(in_file)} and should be {tuple(wanted)}; get weights and "
            "config.json of one model"
        )


def _unused(model: PreTrainedModel, info: LoadStateDictInfo) -> Iterator[Finding]:
    """Yield findings about weights in the files that the architecture does not use."""
    # A part of the architecture itself is no head, whatever its name.
    parts = {name for name, _ in model.named_children()}
    unused = info.unexpected_keys
    heads = {name for name in unused if _is_head(name) and name.partition(".")[0] not in parts - {"pooler"}}
    if heads:
        yield Finding(logging.INFO, f"weights of a head are left out: {listed(heads)}")
    if others := set(unused) - heads:
        yield warning(
            f"its files hold weights that {type(model).__name__} has no place for, which are left out: "
            f"{listed(others)}; check that config.json belongs to these weights"
        )


def _is_head(name: str) -> bool:
    parts = name.split(".")
    return parts[-1] in _BUFFERS or not _HEADS.isdisjoint(parts[:2])


def _missing(model: PreTrainedModel, info: LoadStateDictInfo, needed: Iterable[str]) -> UnservableError:
    unused, n_weights = info.unexpected_keys, len(model.state_dict())
    beside = f", but others that it has no place for ({listed(unused, most=2)})" if unused else ""
    return UnservableError(
        f"its files lack weights of {type(model).__name__} that vectors depend on, which would be random numbers: "
        f"{listed(needed)}; they hold {n_weights - len(info.missing_keys)} of {n_weights}{beside}; get the model's "
        "files again, or with the code that they were made for"
    )


def _with_effect(model: PreTrainedModel, names: Iterable[str], encode: Encode, vectors: Sequence[Vectors]) -> list[str]:
    """Return the weights on which a vector depends. All weights of one part of the model are tested together."""
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(name.partition(".")[0], []).append(name)
    return [name for part in parts.values() if _has_effect(model, part, encode, vectors) for name in part]


@torch.no_grad()
def _has_effect(model: PreTrainedModel, names: Sequence[str], encode: Encode, vectors: Sequence[Vectors]) -> bool:
    """Return True if vectors change when these weights become NaN, or another number where they are integers."""
    tensors = [model.get_parameter_or_buffer(name) for name in names]
    before = [tensor.clone() for tensor in tensors]
    try:
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
            else:
                tensor.copy_(tensor == 0)
        return any((one != other).any() for one, other in zip(encode(), vectors, strict=True))
    except (IndexError, RuntimeError):
        return True
    finally:
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)


def _broken(model: SentenceTransformer, vectors: Sequence[Vectors]) -> list[Finding]:
    """Refuse a model that gives NaN or infinity. Return a warning for such weights that no probe text needs."""
    broken = [
        name
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    where = f"NaN or infinity is in its weights {listed(broken)}, read in float32" if broken else ""
    if not all(torch.isfinite(torch.from_numpy(each)).all() for each in vectors):
        cause = where or "its weights are numbers, but too large to compute with in float32"
        raise UnservableError(f"the model itself gives NaN or infinity: {cause}; get the model's files again")
    return [warning(f"{where}; a text whose vector depends on them is answered with 500")] if broken else []
