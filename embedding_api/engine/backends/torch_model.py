"""Load a sentence-transformers model with torch: check it, find its routes, and compute its reference vectors."""

import pickle
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from embedding_api.engine.backends import Loaded, Route, Task, completeness, torch_backend
from embedding_api.engine.backends.layout import Joining, Padding
from embedding_api.engine.backends.modules import Entrance, entrances, named_prompts, own_prompt
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


class _Way(NamedTuple):
    """How texts go through a model.

    Attributes:
        task: Their task; None for texts without a task, and for tasks without a way of their own.
        entrance: The module that reads them.
        encode_prompt: The prompt that `encode` gets; None lets `encode` choose the model's default prompt.
    """

    task: Task | None
    entrance: Entrance
    encode_prompt: str | None


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
        ways = _ways(model)
        readers = {way.entrance: way.entrance.reader() for way in ways}
        prompts = {own_prompt(model, way.task) for way in ways}
        findings = completeness.compute_buffers(reports)
        findings += [finding for each, reader in readers.items() for finding in _rowless(each, reader, prompts)]
        references = _encode(model, ways)
        findings += completeness.require_whole(model, reports, lambda: _encode(model, ways), references)
    make = partial(_backend, model, precision=precision, device=device, n_threads=n_threads)
    backends = {way.entrance: make(way.entrance, reference) for way, reference in zip(ways, references, strict=True)}
    if precision == "bfloat16":
        for encoder in {way.entrance.first for way in ways if isinstance(way.entrance.first, Transformer)}:
            torch_backend.halve(encoder)
    routes = {
        way.task: _route(model, way, readers[way.entrance], backends[way.entrance], reference)
        for way, reference in zip(ways, references, strict=True)
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


def _ways(model: SentenceTransformer) -> list[_Way]:
    """Return the way of texts without a task, and of each task whose way is different."""
    named_prompts(model)  # which refuses prompts that are no texts
    found = entrances(model)
    default, default_prompt = found.pop(None), own_prompt(model, None)
    ways = [_Way(task, entrance, own_prompt(model, task)) for task, entrance in found.items()]
    return [_Way(None, default, None), *(way for way in ways if way[1:] != (default, default_prompt))]


def _encode(model: SentenceTransformer, ways: Sequence[_Way]) -> list[Vectors]:
    """Return the vectors that sentence-transformers gives for the probe texts, float32, (n_probe_texts, dim) a way."""
    try:
        encoded = [
            model.encode(list(PROBE_TEXTS), prompt=prompt, show_progress_bar=False, **entrance.options)
            for _, entrance, prompt in ways
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


def _backend(
    model: SentenceTransformer, entrance: Entrance, reference: Vectors, *, precision: str, **options: Any
) -> TorchBackend:
    """Return the backend of an entrance; `options` are its device and its threads."""
    dim = reference.shape[1]
    if isinstance(entrance.first, StaticEmbedding):
        # Without a Transformer, less precision gains nothing.
        return TorchBackend(model, Joining(), entrance.options, "float32", dim, **options)
    padding = Padding(_pad_id(entrance.first), is_left=entrance.first.tokenizer.padding_side == "left")
    return TorchBackend(model, padding, entrance.options, precision, dim, **options)


def _route(model: SentenceTransformer, way: _Way, reader: Reader, backend: TorchBackend, reference: Vectors) -> Route:
    prompt = way.entrance.prompt(own_prompt(model, way.task))
    prompts = {name: way.entrance.prompt(text) for name, text in named_prompts(model).items()}
    return Route(reader, backend, prompt, prompts, reference)


def _pad_id(first: Transformer) -> int:
    return first.tokenizer.pad_token_id or 0
