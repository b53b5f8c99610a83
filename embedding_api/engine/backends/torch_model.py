"""Load a sentence-transformers model with torch: check it, find its routes, and compute its reference vectors."""

import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from embedding_api.engine.backends import Loaded, Route, Task, completeness, torch_backend
from embedding_api.engine.backends.layout import Joining, Padding
from embedding_api.engine.backends.modules import Entrance, entrances, limit, named_prompts, own_prompt
from embedding_api.engine.backends.proof import PROBE_TEXTS
from embedding_api.engine.backends.text import Prompt, Reader
from embedding_api.engine.backends.torch_backend import TorchBackend
from embedding_api.engine.findings import Finding, UnservableError, listed, warning
from embedding_api.engine.work import Vectors
from embedding_api.errors import UnsupportedTokenError
from embedding_api.telemetry import library_warnings

# An embedding matrix often has a few rows more than the tokenizer has tokens, so that the number of rows is round. If
# the tokenizer has less than this share, part of its vocabulary is probably missing, and the operator is warned.
_LEAST_SHARE = 0.9


# How the texts of a task go through a model: the module that reads them, and the prompt that `encode` gets. None lets
# `encode` choose the model's default prompt.
_Way = tuple[Entrance, str | None]


def load(
    folder: Path, *, device: str, precision: str, n_threads: int, trust_remote_code: bool, allow_pickle: bool
) -> Loaded:
    """Load a model into main memory. A worker moves it to its device after the fork.

    Args:
        folder: A complete sentence-transformers model.
        device: Where the model will compute: cpu, cuda or mps.
        precision: The arithmetic of its Transformer, float32 or bfloat16; the other modules stay in float32.
        n_threads: Threads of one inference on a CPU.
        trust_remote_code: True if Python files that come with the model may run.
        allow_pickle: True if weights may come from pickle files.

    Raises:
        UnservableError: No backend can serve the model.
        Exception: Anything that sentence-transformers and transformers raise on a broken model.
    """
    torch_backend.prepare_process()
    with library_warnings.collected() as warnings, completeness.reports() as reports:
        model = _read(folder, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        found, prompts = _entrances(model)
        readers = {entrance: entrance.reader() for entrance in found.values()}
        texts = {own_prompt(model, task) for task in found}
        findings = completeness.compute_buffers(reports)
        findings += [finding for each, reader in readers.items() for finding in _rowless(each, reader, texts)]
        ways = _ways(model, found)
        references = _encode(model, ways.values())
        findings += completeness.require_whole(model, reports, lambda: _encode(model, ways.values()), references)
    backends = {
        entrance: TorchBackend(
            model,
            _layout(entrance.first),
            options=entrance.options,
            # Without a Transformer, less precision gains nothing.
            precision=precision if isinstance(entrance.first, Transformer) else "float32",
            dim=reference.shape[1],
            device=device,
            n_threads=n_threads,
        )
        for (entrance, _), reference in zip(ways.values(), references, strict=True)
    }
    if precision == "bfloat16":
        for encoder in _encoders(found):
            torch_backend.halve(encoder)
    routes = {
        task: Route(
            readers[entrance],
            backends[entrance],
            prompt=entrance.prompt(own_prompt(model, task)),
            prompts={name: entrance.prompt(text) for name, text in prompts.items()},
            reference=reference,
        )
        for (task, (entrance, _)), reference in zip(ways.items(), references, strict=True)
    }
    # A conversion keeps these warnings in the cache, whose key does not depend on where the model lies.
    warned = [warning(text.replace(str(folder), "its folder")) for text in warnings]
    return Loaded(routes, [*warned, *findings])


def _read(folder: Path, *, trust_remote_code: bool, allow_pickle: bool) -> SentenceTransformer:
    """Return the model of a folder, on the CPU in float32."""
    model_kwargs: dict[str, Any] = {"dtype": torch.float32}
    if not allow_pickle:
        model_kwargs["use_safetensors"] = True
    try:
        model = SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            model_kwargs=model_kwargs,
        ).eval()
    except (pickle.UnpicklingError, EOFError) as error:
        # torch's own message advises to let the file run code.
        raise UnservableError(
            "a pickle file of its weights is damaged, or holds something else than weights; get the model's files again"
        ) from error
    for module in model.modules():
        # The only module that keeps the numbers as the file stores them.
        if isinstance(module, StaticEmbedding):
            module.float()
    return model


def _entrances(model: SentenceTransformer) -> tuple[dict[Task | None, Entrance], dict[str, str]]:
    """Return the entrance of each task, and the model's prompts by name."""
    try:
        prompts, found = named_prompts(model), entrances(model)
    except (ValueError, TypeError) as error:
        raise UnservableError(str(error)) from error
    for encoder in _encoders(found):
        limit(encoder)
    return found, prompts


def _encoders(found: Mapping[Task | None, Entrance]) -> set[Transformer]:
    return {entrance.first for entrance in found.values() if isinstance(entrance.first, Transformer)}


def _rowless(entrance: Entrance, reader: Reader, prompts: Iterable[str]) -> Iterator[Finding]:
    """Yield a warning for tokens without a row in the embedding matrix, and one for very many rows without a token.

    Raises:
        UnservableError: A token without a row is in every text, in a prompt that texts get by default, or is padding.
    """
    if reader.n_rows and reader.n_vocabulary < _LEAST_SHARE * reader.n_rows:
        yield warning(
            f"its tokenizer knows {reader.n_vocabulary} tokens, and its embedding matrix has {reader.n_rows} rows; "
            "check that the tokenizer's files are whole"
        )
    if not (rowless := reader.tokens_without_row()):
        return
    which = listed(f"{token!r} ({id_})" for id_, token in rowless.items())
    matrix = f"its embedding matrix of {reader.n_rows} rows"
    cure = "get tokenizer and weights of one model"
    for prompt in ("", *prompts):
        try:
            reader.read(PROBE_TEXTS, Prompt(prompt))
        except UnsupportedTokenError as error:
            where = f"its prompt {prompt!r}" if prompt else "any text"
            raise UnservableError(f"{where} holds a token for which {matrix} has no row: {which}; {cure}") from error
    if isinstance(entrance.first, Transformer) and (pad_id := _pad_id(entrance.first)) in rowless:
        raise UnservableError(f"{matrix} has no row for its padding token, {rowless[pad_id]!r}; {cure}")
    yield warning(
        f"{matrix} has no row for tokens of its tokenizer: {which}; a text that holds one of them is refused with "
        "unsupported_token"
    )


def _ways(model: SentenceTransformer, found: Mapping[Task | None, Entrance]) -> dict[Task | None, _Way]:
    """Return the way of texts without a task, and of each task whose way is different."""
    ways: dict[Task | None, _Way] = {None: (found[None], None)}
    default_prompt = own_prompt(model, None)
    for task, entrance in found.items():
        prompt = own_prompt(model, task)
        if task is not None and (entrance, prompt) != (found[None], default_prompt):
            ways[task] = entrance, prompt
    return ways


def _encode(model: SentenceTransformer, ways: Iterable[_Way]) -> list[Vectors]:
    """Return the vectors that sentence-transformers gives for the probe texts, float32, (n_probe_texts, dim) a way."""
    try:
        encoded = [
            np.asarray(model.encode(list(PROBE_TEXTS), prompt=prompt, show_progress_bar=False, **entrance.options))
            for entrance, prompt in ways
        ]
    except KeyError as error:
        if error.args != ("sentence_embedding",):
            raise
        raise UnservableError(
            "its modules give no vector of a text; modules.json lacks one that does, such as Pooling"
        ) from error
    for vectors in encoded:
        if vectors.ndim != 2:
            raise UnservableError(f"its modules give arrays of {vectors.ndim - 1} dimensions of a text, and no vector")
    return encoded


def _layout(first: Transformer | StaticEmbedding) -> Padding | Joining:
    if isinstance(first, StaticEmbedding):
        return Joining()
    tokenizer: Any = first.tokenizer
    return Padding(_pad_id(first), is_left=tokenizer.padding_side == "left")


def _pad_id(first: Transformer) -> int:
    tokenizer: Any = first.tokenizer
    return tokenizer.pad_token_id or 0
