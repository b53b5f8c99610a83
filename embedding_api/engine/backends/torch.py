"""The torch backend: sentence-transformers' own modules, fed with token ids. The only file that imports torch.

It never calls `encode` to serve: that reads texts again, takes some of them for file names and addresses of pictures,
and changes its tokenizer as it goes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sentence_transformers
import torch
import tqdm
import transformers
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

from embedding_api.engine import preload
from embedding_api.engine.arrays import Ids, Vectors
from embedding_api.engine.backends import Route, Routes, Task
from embedding_api.engine.backends.layout import Padding
from embedding_api.engine.proof import PROBE_TEXTS
from embedding_api.engine.text import Prompt, Reader

# A master that has ever used more than one OpenMP thread forks workers that hang; prepare() raises it after the fork.
torch.set_num_threads(1)

# oneDNN keeps what it compiles for each new shape, in between the memory of tensors, so that the heap grows and cannot
# shrink: after 40 requests of 32 mixed texts a worker held 80 MB and more for itself, 24 to 28 MB without oneDNN, for
# 6 % of the throughput. Where there is no MKL to multiply in its place, as on ARM, it stays.
if torch.backends.mkl.is_available():  # type: ignore[no-untyped-call] # torch left it without types
    torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call] # the same

# Progress bars start a thread, which no fork survives.
transformers.utils.logging.disable_progress_bar()
tqdm.tqdm.monitor_interval = 0

# Padded tokens of a batch. On a CPU 256 fill a core, and larger ones fall out of its cache: see docs/decisions/0002.
# A GPU wants far more at once.
_CPU_BATCH_TOKENS, _GPU_BATCH_TOKENS = 256, 16_384

# Batches after which free memory goes back to the system: every few seconds, so that it costs nothing to speak of.
_TRIM_EVERY = 64

# What the prompt of a task may be called.
_PROMPT_NAMES: Mapping[Task, Sequence[str]] = {"query": ["query"], "document": ["document", "passage", "corpus"]}


def load(
    folder: Path, *, device: str, precision: str, n_threads: int, trust_remote_code: bool, allow_pickle: bool
) -> Routes:
    """Loads a model into main memory; it moves to its device when a worker prepares it.

    Args:
        folder: A complete sentence-transformers model.
        device: Where it will compute: cpu, cuda or mps.
        precision: What its Transformer computes in, float32 or bfloat16; the rest stays in float32.
        n_threads: Threads that one inference may use on a CPU.
        trust_remote_code: Whether Python files that come with the model may run.
        allow_pickle: Whether weights may come from pickle files.

    Raises:
        ValueError: The model is none that this backend can serve; the message says why.
        Exception: Whatever sentence-transformers and transformers raise on a broken model.
    """
    model_kwargs: dict[str, Any] = {"dtype": torch.float32}
    if not allow_pickle:
        model_kwargs["use_safetensors"] = True
    model = sentence_transformers.SentenceTransformer(
        str(folder),
        device="cpu",
        local_files_only=True,
        trust_remote_code=trust_remote_code,
        model_kwargs=model_kwargs,
    ).eval()
    prompts = _named_prompts(model)
    entrances = _entrances(model)
    for first in {entrance.first for entrance in entrances.values()}:
        if isinstance(first, Transformer):
            _limit(first)
    made: dict[_Entrance, tuple[Reader, TorchBackend]] = {}
    routes: dict[Task | None, Route] = {}
    for task, entrance in entrances.items():
        text = _prompt_text(model, task)
        if task is not None and entrance == entrances[None] and text == routes[None].prompt.text:
            continue
        # Its default prompt is for itself to find.
        prompt = None if task is None else text
        reference = np.asarray(
            model.encode(list(PROBE_TEXTS), prompt=prompt, show_progress_bar=False, **entrance.options)
        )
        if entrance not in made:
            backend = TorchBackend(
                model,
                entrance.feed(),
                options=entrance.options,
                # Without a Transformer there is nothing that gains from less precision.
                precision=precision if isinstance(entrance.first, Transformer) else "float32",
                dim=reference.shape[1],
                device=device,
                n_threads=n_threads,
            )
            made[entrance] = entrance.reader(), backend
        routes[task] = Route(
            *made[entrance],
            prompt=_prompt(model, entrance, text),
            prompts={name: _prompt(model, entrance, prompts[name]) for name in prompts},
            reference=reference,
        )
    if precision == "bfloat16":
        for first in {entrance.first for entrance in made}:
            if isinstance(first, Transformer):
                _halve(first)
    return routes


class TorchBackend:
    """Runs a sentence-transformers module chain; see `Backend` for what the parts mean.

    Attributes:
        model: The chain.
        feed: Makes of a batch what the chain's first module reads.
        options: What the chain is called with, beside that.
    """

    name = "torch"

    def __init__(
        self,
        model: sentence_transformers.SentenceTransformer,
        feed: "Padded | Concatenated",
        *,
        options: Mapping[str, Any],
        precision: str,
        dim: int,
        device: str,
        n_threads: int,
    ) -> None:
        self.model = model
        self.feed = feed
        self.options = options
        self.precision = precision
        self._device = device
        self._n_threads = n_threads
        self._n_batches = 0
        self.dim = dim
        self.max_batch_tokens = _CPU_BATCH_TOKENS if device == "cpu" else _GPU_BATCH_TOKENS

    def prepare(self) -> None:
        """Takes the threads and the device that are this worker's; OpenMP keeps the former for each thread."""
        torch.set_num_threads(self._n_threads)
        self.model.to(self._device)

    def n_computed(self, n_texts: int, longest: int, n_tokens: int) -> int:
        """See `Layout.n_computed`."""
        return self.feed.n_computed(n_texts, longest, n_tokens)

    def embed(self, batch: Sequence[Ids], n_prompt_tokens: int) -> Vectors:
        """See `Backend.embed`."""
        features: dict[str, Any] = {**self.feed(batch), "modality": "text"}
        if n_prompt_tokens:
            features["prompt_length"] = n_prompt_tokens
        device = self.model.device
        features = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in features.items()
        }
        with torch.inference_mode():
            vectors = self.model(features, **self.options)["sentence_embedding"]
        self._n_batches += 1
        if self._n_batches % _TRIM_EVERY == 0:
            preload.trim()
        return np.asarray(vectors[:, : self.dim].float().cpu().numpy())


class Padded:
    """What a Transformer module reads: ids and mask, int64, (n_texts, longest)."""

    def __init__(self, padding: Padding) -> None:
        self.padding = padding

    def __call__(self, batch: Sequence[Ids]) -> dict[str, Any]:
        """What the module reads for this batch."""
        ids, mask = self.padding(batch)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}

    def n_computed(self, n_texts: int, longest: int, n_tokens: int) -> int:
        """See `Layout.n_computed`."""
        return self.padding.n_computed(n_texts, longest, n_tokens)


class Concatenated:
    """What a StaticEmbedding module reads: all ids in a row, int64, and where each text begins, (n_texts,)."""

    def __call__(self, batch: Sequence[Ids]) -> dict[str, Any]:
        """What the module reads for this batch."""
        offsets = np.cumsum([0, *map(len, batch[:-1])])
        return {"input_ids": torch.from_numpy(np.concatenate(batch)), "offsets": torch.from_numpy(offsets)}

    def n_computed(self, n_texts: int, longest: int, n_tokens: int) -> int:  # noqa: ARG002 - see Layout
        """See `Layout.n_computed`."""
        return n_tokens


class _Entrance(NamedTuple):
    """Where the texts of a task enter a model.

    Attributes:
        task: What the model is told of it, if that changes anything.
        first: The module that texts come to.
        window: Tokens that it can read, if there is a limit.
    """

    task: Task | None
    first: Transformer | StaticEmbedding
    window: int | None

    @property
    def options(self) -> dict[str, Any]:
        """What the model is called with."""
        return {} if self.task is None else {"task": self.task}

    def reader(self) -> Reader:
        """What reads texts for it."""
        if isinstance(self.first, StaticEmbedding):
            return Reader(self.first.tokenizer, window=self.window, add_special_tokens=False)
        tokenizer: Any = self.first.tokenizer
        return Reader(tokenizer.backend_tokenizer, window=self.window, truncation_side=tokenizer.truncation_side)

    def feed(self) -> Padded | Concatenated:
        """What makes of a batch what it reads."""
        if isinstance(self.first, StaticEmbedding):
            return Concatenated()
        tokenizer: Any = self.first.tokenizer
        return Padded(Padding(tokenizer.pad_token_id or 0, is_left=tokenizer.padding_side == "left"))


def _entrances(model: sentence_transformers.SentenceTransformer) -> dict[Task | None, _Entrance]:
    """Of each task, and of none; that of none where a task makes no difference."""
    default = _entrance(model, None)
    entrances: dict[Task | None, _Entrance] = {None: default}
    for task in _PROMPT_NAMES:
        if not _knows(model, task):
            entrances[task] = default
            continue
        entrance = _entrance(model, task)
        makes_difference = "task" in model.get_model_kwargs() or entrance.window != default.window
        entrances[task] = entrance if makes_difference else default
    return entrances


def _knows(model: sentence_transformers.SentenceTransformer, task: Task) -> bool:
    """Whether a model may be told of a task; a router that has no route for it refuses."""
    if not any(isinstance(module, Router) for module in model.modules()):
        return True
    try:
        model.encode("a", task=task)
    except ValueError:
        return False
    return True


def _entrance(model: sentence_transformers.SentenceTransformer, task: Task | None) -> _Entrance:
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
        return _Entrance(task, first, (first.tokenizer.truncation or {}).get("max_length"))
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
    return _Entrance(task, first, _window(first, task))


def _named_prompts(model: sentence_transformers.SentenceTransformer) -> dict[str, str]:
    """The model's prompts by name, none if nobody has given it any."""
    for name, text in model.prompts.items():
        if not isinstance(text, str):
            raise TypeError(f"its prompt {name!r} is not a text: {text!r}")
        # Half a surrogate pair cannot be sent in any answer.
        f"{name}{text}".encode()
    # Each model has a `query` and a `document`, empty if they are not its own.
    return model.prompts if any(model.prompts.values()) else {}


def _prompt_text(model: sentence_transformers.SentenceTransformer, task: Task | None) -> str:
    """What stands before a text of a task where the request names no prompt.

    `encode_document` means to take the first of several names that there is, and stops at `document`, which each model
    has, though it be empty: a model with a `passage` gets that here.
    """
    names = [model.default_prompt_name] if task is None else _PROMPT_NAMES[task]
    return next((text for name in names if name is not None and (text := model.prompts.get(name))), "")


def _halve(transformer: Transformer) -> None:
    """Makes a Transformer compute in bfloat16 and hand on float32.

    The modules behind it, a thousandth of the work, keep their precision: a vector that Normalize made in bfloat16 is
    not 1 long.
    """
    for parameter in transformer.model.parameters():
        # Not the buffers: frequencies of rotary positions that are rounded are off by radians after a thousand tokens.
        parameter.data = parameter.data.to(torch.bfloat16)
    transformer.register_forward_hook(lambda _module, _inputs, features: _floated(features))


def _floated(features: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in features.items()
    }


def _prompt(model: sentence_transformers.SentenceTransformer, entrance: _Entrance, text: str) -> Prompt:
    """A prompt, with its tokens where pooling leaves them out."""
    poolings = (module for module in model.modules() if isinstance(module, Pooling))
    if not text or all(pooling.include_prompt for pooling in poolings):
        return Prompt(text)
    features: Mapping[str, Any] = entrance.first.preprocess(["a"], prompt=text)
    return Prompt(text, int(features.get("prompt_length") or 0))


def _limit(first: Transformer) -> None:
    """Lets `encode` read no more tokens than there are positions; it breaks where the tokenizer declares more."""
    windows = {task: _window(first, task) for task in (None, *_PROMPT_NAMES)}
    if windows[None] is not None:
        first.max_seq_length = windows[None]
    first.query_length = first.query_length and windows["query"]
    first.document_length = first.document_length and windows["document"]


def _window(first: Transformer, task: Task | None) -> int | None:
    """Tokens that a Transformer module reads of a text: as many as are declared, but no more than it has positions."""
    declared = {"query": first.query_length, "document": first.document_length}.get(task or "") or first.max_seq_length
    limits = [declared] if declared else []
    for module in first.model.modules():
        positions = getattr(module, "position_embeddings", None)
        if isinstance(positions, torch.nn.Embedding):
            limits.append(positions.num_embeddings - _first_position(module))
    window = min(limits, default=None)
    # transformers writes "no limit" as 1e30.
    return None if window is None or window > 2**31 else int(window)


def first_position(transformer: Transformer) -> int:
    """What the model calls the first position of a text."""
    return max(map(_first_position, transformer.model.modules()))


def _first_position(module: torch.nn.Module) -> int:
    """RoBERTa and its kin count positions from padding_idx + 1 on."""
    padding_idx = getattr(module, "padding_idx", None)
    return padding_idx + 1 if isinstance(padding_idx, int) and hasattr(module, "position_embeddings") else 0
