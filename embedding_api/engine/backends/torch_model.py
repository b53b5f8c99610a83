"""Load a sentence-transformers model with torch: check it, find its routes, and compute its reference vectors."""

import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from embedding_api.engine.backends import Loaded, Route, Task, completeness, torch_backend
from embedding_api.engine.backends.layout import Padding
from embedding_api.engine.backends.modules import Entrance, entrances, named_prompts, own_prompt
from embedding_api.engine.backends.proof import PROBE_TEXTS
from embedding_api.engine.backends.text import Prompt
from embedding_api.engine.backends.torch_backend import TorchBackend
from embedding_api.engine.findings import Finding, UnservableError, listed, warning
from embedding_api.engine.work import Vectors
from embedding_api.errors import UnsupportedTokenError
from embedding_api.telemetry import library_warnings

# An embedding matrix often has a few rows more than the tokenizer has tokens, so that the number of rows is round. If
# the tokenizer has less than this share, part of its vocabulary is probably missing, and the operator is warned.
_LEAST_SHARE = 0.9


class _Way(NamedTuple):
    """How the texts of a task go through a model.

    Attributes:
        entrance: The place where they enter it.
        prompt: The prompt that they get where the request names none.
    """

    entrance: Entrance
    prompt: str


def load(folder: Path, *, device: str, precision: str, trust_remote_code: bool, allow_pickle: bool) -> Loaded:
    """Load a model into main memory. A worker moves it to its device after the fork.

    Args:
        folder: A complete sentence-transformers model.
        device: Where the model will compute: cpu, cuda or mps.
        precision: The arithmetic of its Transformer: float32, bfloat16 or float16. The other modules stay in float32.
        trust_remote_code: True if Python files that come with the model may run.
        allow_pickle: True if weights may come from pickle files.

    Raises:
        UnservableError: No backend can serve the model.
        Exception: Anything that sentence-transformers and transformers raise on a broken model.
    """
    torch_backend.prepare_process()
    with library_warnings.collected() as warnings, completeness.reports() as reports:
        model = _read(folder, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        named = named_prompts(model)
        ways = _ways(model)
        findings = completeness.compute_buffers(reports)
        for entrance in dict.fromkeys(way.entrance for way in ways.values()):
            findings += _rowless(entrance, {way.prompt for way in ways.values()})
        references = _encode(model, ways)
        findings += completeness.require_whole(model, reports, lambda: _encode(model, ways), references)
    if precision in torch_backend.HALVES:
        for encoder in {way.entrance.first for way in ways.values() if isinstance(way.entrance.first, Transformer)}:
            torch_backend.halve(encoder, precision)
    routes: dict[Task | None, Route] = {}
    backends: dict[Entrance, TorchBackend] = {}
    for (task, way), reference in zip(ways.items(), references, strict=True):
        entrance = way.entrance
        if entrance not in backends:
            # Without a Transformer, less precision gains nothing.
            own_precision = precision if isinstance(entrance.first, Transformer) else "float32"
            backends[entrance] = TorchBackend(
                model, entrance.layout, entrance.options, own_precision, reference.shape[1], device
            )
        prompts = {name: entrance.prompt(text) for name, text in named.items()}
        routes[task] = Route(entrance.reader, backends[entrance], entrance.prompt(way.prompt), prompts, reference)
    # A conversion keeps these warnings in the cache, whose key does not depend on where the model lies.
    warned = [warning(text.replace(str(folder), "its folder")) for text in warnings]
    return Loaded(routes, [*warned, *findings])


def _read(folder: Path, *, trust_remote_code: bool, allow_pickle: bool) -> SentenceTransformer:
    """Return the model of a folder, on the CPU in float32."""
    try:
        model = SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            # None allows both formats.
            model_kwargs={"dtype": torch.float32, "use_safetensors": None if allow_pickle else True},
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


def _rowless(entrance: Entrance, prompts: Iterable[str]) -> Iterator[Finding]:
    """Yield a warning for tokens without a row in the embedding matrix, and one for very many rows without a token.

    Raises:
        UnservableError: A token without a row is in every text, in a prompt that texts get by default, or is padding.
    """
    reader, layout = entrance.reader, entrance.layout
    if reader.n_rows and reader.n_vocabulary < _LEAST_SHARE * reader.n_rows:
        yield warning(
            f"its tokenizer knows {reader.n_vocabulary} tokens, and its embedding matrix has {reader.n_rows} rows; "
            "check that the tokenizer's files are whole"
        )
    if not reader.rowless:
        return
    which = listed(f"{token!r} ({id_})" for id_, token in reader.rowless.items())
    matrix = f"its embedding matrix of {reader.n_rows} rows"
    cure = "get tokenizer and weights of one model"
    for prompt in ("", *prompts):
        try:
            reader.read(PROBE_TEXTS, Prompt(prompt))
        except UnsupportedTokenError as error:
            where = f"its prompt {prompt!r}" if prompt else "any text"
            raise UnservableError(f"{where} holds a token for which {matrix} has no row: {which}; {cure}") from error
    if isinstance(layout, Padding) and layout.pad_id in reader.rowless:
        raise UnservableError(f"{matrix} has no row for its padding token, {reader.rowless[layout.pad_id]!r}; {cure}")
    yield warning(
        f"{matrix} has no row for tokens of its tokenizer: {which}; a text that holds one of them is refused with "
        "unsupported_token"
    )


def _ways(model: SentenceTransformer) -> dict[Task | None, _Way]:
    """Return the way of texts without a task, and of each task whose way is different."""
    ways = {task: _Way(entrance, own_prompt(model, task)) for task, entrance in entrances(model).items()}
    return {task: way for task, way in ways.items() if task is None or way != ways[None]}


def _encode(model: SentenceTransformer, ways: Mapping[Task | None, _Way]) -> list[Vectors]:
    """Return the vectors that sentence-transformers gives for the probe texts, float32, (n_probe_texts, dim) a way."""
    # Of texts without a task `encode` itself finds the prompt.
    prompts = [None if task is None else way.prompt for task, way in ways.items()]
    try:
        encoded = [
            model.encode(list(PROBE_TEXTS), prompt=prompt, show_progress_bar=False, **way.entrance.options)
            for prompt, way in zip(prompts, ways.values(), strict=True)
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
