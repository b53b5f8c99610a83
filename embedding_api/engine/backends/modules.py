"""Find where texts enter a sentence-transformers model: which module reads them and how, and its prompts."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

from embedding_api.engine.backends import Task
from embedding_api.engine.backends.layout import Joining, Padding
from embedding_api.engine.backends.text import Prompt, Reader
from embedding_api.engine.findings import UnservableError

# Names that a model may give to the prompt of a task.
_PROMPT_NAMES: Mapping[Task, Sequence[str]] = {"query": ["query"], "document": ["document", "passage", "corpus"]}


class Entrance(NamedTuple):
    """The place where the texts of a task enter a model.

    Attributes:
        task: The task that the model is called with; None where it makes no difference.
        first: The module that reads the tokens.
        reader: Turns the texts into tokens.
        layout: Makes the features that `first` reads.
        pools_prompts: True if the tokens of a prompt count for the vector, as in most models.
    """

    task: Task | None
    first: Transformer | StaticEmbedding
    reader: Reader
    layout: Padding | Joining
    pools_prompts: bool

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of the model's call."""
        return {} if self.task is None else {"task": self.task}

    def prompt(self, text: str) -> Prompt:
        """Return a prompt with these words."""
        if not text or self.pools_prompts:
            return Prompt(text)
        features: Mapping[str, Any] = self.first.preprocess(["a"], prompt=text)
        return Prompt(text, int(features.get("prompt_length") or 0))


def entrances(model: SentenceTransformer) -> dict[Task | None, Entrance]:
    """Return the entrance of texts without a task, and of each task. They are equal where a task makes no difference.

    From then on, `encode` has the same windows.

    Raises:
        UnservableError: This service cannot feed the model.
    """
    default = _entrance(model, None)
    found: dict[Task | None, Entrance] = {None: default}
    for task in _PROMPT_NAMES:
        has_own = _knows(model, task) and (
            "task" in model.get_model_kwargs() or _window(_first(model, task), task) != default.reader.window
        )
        found[task] = _entrance(model, task) if has_own else default
    return found


def _limit(first: Transformer) -> None:
    """Limit `encode` to the model's positions. It fails where the tokenizer declares a larger window than that."""
    windows = {task: _window(first, task) for task in (None, *_PROMPT_NAMES)}
    if windows[None] is not None:
        first.max_seq_length = windows[None]
    first.query_length = first.query_length and windows["query"]
    first.document_length = first.document_length and windows["document"]


def named_prompts(model: SentenceTransformer) -> dict[str, str]:
    """Return the model's prompts by name; an empty dictionary if all of them are empty.

    Raises:
        UnservableError: A prompt is no text, or it or its name holds half a surrogate pair, which JSON cannot hold.
    """
    for name, text in model.prompts.items():
        if not isinstance(text, str):
            raise UnservableError(
                f"its prompt {name!r} is no text: {text!r}; correct config_sentence_transformers.json"
            )
        if re.search("[\ud800-\udfff]", name + text):
            raise UnservableError(f"its prompt {name!r} holds surrogates: {text!r}; write whole characters")
    # The library gives each model a `query` and a `document`, which are empty by default.
    return model.prompts if any(model.prompts.values()) else {}


def own_prompt(model: SentenceTransformer, task: Task | None) -> str:
    """Return the prompt of a text of a task where the request names no prompt.

    `encode_document` wants the first of several names that the model has. It stops at `document`, which each model has,
    if only an empty one. This function goes on to `passage`.
    """
    names = [model.default_prompt_name] if task is None else _PROMPT_NAMES[task]
    return next((text for name in names if name is not None and (text := model.prompts.get(name))), "")


def _knows(model: SentenceTransformer, task: Task) -> bool:
    """Return True if a model accepts a task. A router without a route for it does not."""
    if not any(isinstance(module, Router) for module in model.modules()):
        return True
    try:
        model.encode("a", task=task)
    except ValueError:
        return False
    return True


def _entrance(model: SentenceTransformer, task: Task | None) -> Entrance:
    first = _first(model, task)
    window = _window(first, task)
    pools_prompts = all(module.include_prompt for module in model.modules() if isinstance(module, Pooling))
    if isinstance(first, StaticEmbedding):
        reader = Reader(first.tokenizer, window=window, n_rows=first.num_embeddings, add_special_tokens=False)
        return Entrance(task, first, reader, Joining(), pools_prompts)
    _limit(first)
    tokenizer: Any = first.tokenizer
    reader = Reader(
        tokenizer.backend_tokenizer,
        window=window,
        n_rows=_n_rows(first),
        truncation_side=tokenizer.truncation_side,
    )
    layout = Padding(tokenizer.pad_token_id or 0, is_left=tokenizer.padding_side == "left")
    return Entrance(task, first, reader, layout, pools_prompts)


def _first(model: SentenceTransformer, task: Task | None) -> Transformer | StaticEmbedding:
    first = model[0]
    while isinstance(first, Router):
        try:
            # No public function returns the route.
            route = first._resolve_route(task, "text")  # noqa: SLF001
        except ValueError as error:
            raise UnservableError(
                "it has routes and no default one, so it cannot embed a text without being told which"
            ) from error
        first = first.sub_modules[route][0]
    if isinstance(first, StaticEmbedding):
        return first
    tokenizer: Any = getattr(first, "tokenizer", None)
    if not isinstance(first, Transformer) or not getattr(tokenizer, "is_fast", False):
        raise UnservableError(
            f"its first module is a {type(first).__name__} with a {type(tokenizer).__name__}; served are Transformer "
            "modules with a fast tokenizer and StaticEmbedding"
        )
    if "message" in first.modality_config or "text" not in first.modality_config:
        raise UnservableError("it reads chat messages or other media; served are models that read plain text")
    if first.query_expansion is not None:
        raise UnservableError("it fills queries up with tokens of their own (query_expansion), which is not served")
    return first


def _window(first: Transformer | StaticEmbedding, task: Task | None) -> int | None:
    """Return the most tokens of a text: the declared window, but at most the number of positions."""
    if isinstance(first, StaticEmbedding):
        return (first.tokenizer.truncation or {}).get("max_length")
    declared = {"query": first.query_length, "document": first.document_length}.get(task or "") or first.max_seq_length
    limits = [declared] if declared else []
    for module in first.model.modules():
        positions = getattr(module, "position_embeddings", None)
        if isinstance(positions, torch.nn.Embedding):
            limits.append(positions.num_embeddings - _first_position(module))
        # The names in GPT-2, OPT and their relatives.
        if any(isinstance(getattr(module, name, None), torch.nn.Embedding) for name in ("wpe", "embed_positions")):
            limits.append(first.model.config.max_position_embeddings)
    window = min(limits, default=None)
    # transformers writes "no limit" as 1e30.
    return None if window is None or window > 2**31 else int(window)


def _n_rows(first: Transformer) -> int | None:
    try:
        matrix = first.model.get_input_embeddings()
    except NotImplementedError:
        # Code that comes with a model need not implement this.
        return None
    return int(matrix.weight.shape[0]) if isinstance(matrix, torch.nn.Embedding) else None


def first_position(transformer: Transformer) -> int:
    """Return the number that the model gives to the first position of a text."""
    return max(map(_first_position, transformer.model.modules()))


def _first_position(module: torch.nn.Module) -> int:
    """Return the same for one module. RoBERTa and its relatives count positions from padding_idx + 1."""
    padding_idx = getattr(module, "padding_idx", None)
    return padding_idx + 1 if isinstance(padding_idx, int) and hasattr(module, "position_embeddings") else 0
