"""Where texts enter a sentence-transformers model: which module reads them, how much of them, after which prompt."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

from embedding_api.engine.backends import Task
from embedding_api.engine.backends.text import Prompt, Reader

# What the prompt of a task may be called.
_PROMPT_NAMES: Mapping[Task, Sequence[str]] = {"query": ["query"], "document": ["document", "passage", "corpus"]}


class Entrance(NamedTuple):
    """Where the texts of a task enter a model.

    Attributes:
        task: What the model is told of it, if that changes anything.
        first: The module that texts come to.
        window: Tokens that it can read, if there is a limit.
        n_rows: Of the embedding matrix, in which each token id that it reads has its row; None if nobody knows.
        pools_prompts: Whether a prompt's tokens count for the vector, as they do in most models.
    """

    task: Task | None
    first: Transformer | StaticEmbedding
    window: int | None
    n_rows: int | None
    pools_prompts: bool

    @property
    def options(self) -> dict[str, Any]:
        """What the model is called with."""
        return {} if self.task is None else {"task": self.task}

    def reader(self) -> Reader:
        """What reads texts for it."""
        if isinstance(self.first, StaticEmbedding):
            return Reader(self.first.tokenizer, window=self.window, n_rows=self.n_rows, add_special_tokens=False)
        tokenizer: Any = self.first.tokenizer
        return Reader(
            tokenizer.backend_tokenizer,
            window=self.window,
            n_rows=self.n_rows,
            truncation_side=tokenizer.truncation_side,
        )

    def prompt(self, text: str) -> Prompt:
        """A prompt of this text."""
        if not text or self.pools_prompts:
            return Prompt(text)
        features: Mapping[str, Any] = self.first.preprocess(["a"], prompt=text)
        return Prompt(text, int(features.get("prompt_length") or 0))


def entrances(model: SentenceTransformer) -> dict[Task | None, Entrance]:
    """Of texts without a task, and of each task; the same where a task makes no difference.

    Raises:
        ValueError: Texts cannot be served to it as they enter it; the message says why.
    """
    default = _entrance(model, None)
    found: dict[Task | None, Entrance] = {None: default}
    for task in _PROMPT_NAMES:
        found[task] = default
        if _knows(model, task):
            own = _entrance(model, task)
            if "task" in model.get_model_kwargs() or own.window != default.window:
                found[task] = own
    return found


def limit(first: Transformer) -> None:
    """Lets `encode` read no more tokens than there are positions; it breaks where the tokenizer declares more."""
    windows = {task: _window(first, task) for task in (None, *_PROMPT_NAMES)}
    if windows[None] is not None:
        first.max_seq_length = windows[None]
    first.query_length = first.query_length and windows["query"]
    first.document_length = first.document_length and windows["document"]


def named_prompts(model: SentenceTransformer) -> dict[str, str]:
    """The model's prompts by name, none if nobody has given it any.

    Raises:
        TypeError: One of them is no text.
        UnicodeEncodeError: One of them, or its name, holds half a surrogate pair, which no answer can.
    """
    for name, text in model.prompts.items():
        if not isinstance(text, str):
            raise TypeError(f"its prompt {name!r} is no text: {text!r}")
        f"{name}{text}".encode()
    # Each model has a `query` and a `document`, empty if they are not its own.
    return model.prompts if any(model.prompts.values()) else {}


def own_prompt(model: SentenceTransformer, task: Task | None) -> str:
    """What stands before a text of a task where the request names no prompt.

    `encode_document` means to take the first of several names that there is, and stops at `document`, which each model
    has, though it be empty: a model with a `passage` gets that here.
    """
    names = [model.default_prompt_name] if task is None else _PROMPT_NAMES[task]
    return next((text for name in names if name is not None and (text := model.prompts.get(name))), "")


def _knows(model: SentenceTransformer, task: Task) -> bool:
    """Whether a model may be told of a task; a router that has no route for it refuses."""
    if not any(isinstance(module, Router) for module in model.modules()):
        return True
    try:
        model.encode("a", task=task)
    except ValueError:
        return False
    return True


def _entrance(model: SentenceTransformer, task: Task | None) -> Entrance:
    first = _first(model, task)
    if isinstance(first, StaticEmbedding):
        window = (first.tokenizer.truncation or {}).get("max_length")
    else:
        window = _window(first, task)
    poolings = (module for module in model.modules() if isinstance(module, Pooling))
    return Entrance(task, first, window, _n_rows(first), all(pooling.include_prompt for pooling in poolings))


def _first(model: SentenceTransformer, task: Task | None) -> Transformer | StaticEmbedding:
    first = model[0]
    while isinstance(first, Router):
        try:
            # There is no public way to ask.
            route = first._resolve_route(task, "text")  # noqa: SLF001
        except ValueError as error:
            raise ValueError(
                "it has routes and no default one, so it cannot embed a text without being told which"
            ) from error
        first = first.sub_modules[route][0]
    if isinstance(first, StaticEmbedding):
        return first
    tokenizer: Any = getattr(first, "tokenizer", None)
    if not isinstance(first, Transformer) or not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"its first module is a {type(first).__name__} with a {type(tokenizer).__name__}; served are Transformer "
            "modules with a fast tokenizer and StaticEmbedding"
        )
    if "message" in first.modality_config or "text" not in first.modality_config:
        raise ValueError("it reads chat messages or other media; served are models that read plain text")
    if first.query_expansion is not None:
        raise ValueError("it fills queries up with tokens of their own (query_expansion), which is not served")
    return first


def _window(first: Transformer, task: Task | None) -> int | None:
    """Tokens that a Transformer module reads of a text: as many as are declared, but no more than it has positions."""
    declared = {"query": first.query_length, "document": first.document_length}.get(task or "") or first.max_seq_length
    limits = [declared] if declared else []
    for module in first.model.modules():
        positions = getattr(module, "position_embeddings", None)
        if isinstance(positions, torch.nn.Embedding):
            limits.append(positions.num_embeddings - _first_position(module))
        # GPT-2 and OPT and their kin.
        if any(isinstance(getattr(module, name, None), torch.nn.Embedding) for name in ("wpe", "embed_positions")):
            limits.append(first.model.config.max_position_embeddings)
    window = min(limits, default=None)
    # transformers writes "no limit" as 1e30.
    return None if window is None or window > 2**31 else int(window)


def _n_rows(first: Transformer | StaticEmbedding) -> int | None:
    if isinstance(first, StaticEmbedding):
        return int(first.num_embeddings)
    try:
        matrix = first.model.get_input_embeddings()
    except NotImplementedError:
        # A model's own code need not say where it is.
        return None
    return int(matrix.weight.shape[0]) if isinstance(matrix, torch.nn.Embedding) else None


def first_position(transformer: Transformer) -> int:
    """What the model calls the first position of a text."""
    return max(map(_first_position, transformer.model.modules()))


def _first_position(module: torch.nn.Module) -> int:
    """RoBERTa and its kin count positions from padding_idx + 1 on."""
    padding_idx = getattr(module, "padding_idx", None)
    return padding_idx + 1 if isinstance(padding_idx, int) and hasattr(module, "position_embeddings") else 0
