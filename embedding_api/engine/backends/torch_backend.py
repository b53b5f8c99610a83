"""The torch backend: sentence-transformers' own modules, fed with token ids.

It never calls `encode` to serve: that reads texts again, takes some of them for file names and addresses of pictures,
and changes its tokenizer as it goes.
"""

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import torch
import tqdm
import transformers
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from embedding_api.engine.backends import Loaded, Route, Routes, Task, completeness
from embedding_api.engine.backends.layout import Padding
from embedding_api.engine.backends.modules import Entrance, entrances, limit, named_prompts, own_prompt
from embedding_api.engine.backends.proof import PROBE_TEXTS
from embedding_api.engine.backends.text import Prompt, Reader
from embedding_api.engine.findings import Finding, UnservableError, listed, warning
from embedding_api.engine.work import Ids, Vectors
from embedding_api.errors import UnsupportedTokenError
from embedding_api.machine import memory
from embedding_api.telemetry import library_warnings

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

# Many a matrix has a few rows more than there are tokens, so that their number is round. A vocabulary that was cut off
# lacks more: of fewer tokens than this share of the rows the operator is told.
_LEAST_SHARE = 0.9

# Batches after which free memory goes back to the system: every few seconds, so that it costs nothing to speak of.
_TRIM_EVERY = 64


def load(
    folder: Path, *, device: str, precision: str, n_threads: int, trust_remote_code: bool, allow_pickle: bool
) -> Loaded:
    """Loads a model into main memory; it moves to its device when a worker prepares it.

    Args:
        folder: A complete sentence-transformers model.
        device: Where it will compute: cpu, cuda or mps.
        precision: What its Transformer computes in, float32 or bfloat16; the rest stays in float32.
        n_threads: Threads that one inference may use on a CPU.
        trust_remote_code: Whether Python files that come with the model may run.
        allow_pickle: Whether weights may come from pickle files.

    Raises:
        UnservableError: The model cannot be served; the message says why.
        Exception: Whatever sentence-transformers and transformers raise on a broken model.
    """
    with library_warnings.collected() as warnings, completeness.reports() as reports:
        model = _load(folder, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
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
            _feed(entrance.first),
            options=entrance.options,
            # Without a Transformer there is nothing that gains from less precision.
            precision=precision if isinstance(entrance.first, Transformer) else "float32",
            dim=reference.shape[1],
            device=device,
            n_threads=n_threads,
        )
        for (entrance, _), reference in zip(ways.values(), references, strict=True)
    }
    if precision == "bfloat16":
        for encoder in _encoders(found):
            _halve(encoder)
    # Where the model lies is no part of what a conversion of it keeps.
    said = [warning(line.replace(str(folder), "its folder")) for line in warnings]
    return Loaded(_routes(model, ways, references, readers, backends, prompts), [*said, *findings])


def _load(folder: Path, *, trust_remote_code: bool, allow_pickle: bool) -> sentence_transformers.SentenceTransformer:
    """The model on the CPU in float32."""
    model_kwargs: dict[str, Any] = {"dtype": torch.float32}
    if not allow_pickle:
        model_kwargs["use_safetensors"] = True
    try:
        model = sentence_transformers.SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            model_kwargs=model_kwargs,
        ).eval()
    except (pickle.UnpicklingError, EOFError) as error:
        # torch's own words advise to let it run code.
        raise UnservableError(
            "a pickle file of its weights is damaged, or holds something else than weights; get the model's files again"
        ) from error
    for module in model.modules():
        # The only one that keeps the numbers as they are stored.
        if isinstance(module, StaticEmbedding):
            module.float()
    return model


def _entrances(
    model: sentence_transformers.SentenceTransformer,
) -> tuple[dict[Task | None, Entrance], dict[str, str]]:
    """Where texts of each task enter the model, and its prompts by name."""
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
    """Tells which tokens the embedding matrix has no row for, and of rows without a token if there are very many.

    Raises:
        UnservableError: Any text holds a token without a row, a prompt that nobody asks for does, or padding is one.
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
        f"{matrix} has none for tokens of its tokenizer: {which}; a text that holds one is refused with "
        "unsupported_token"
    )


def _ways(
    model: sentence_transformers.SentenceTransformer, found: Mapping[Task | None, Entrance]
) -> dict[Task | None, tuple[Entrance, str | None]]:
    """Of texts without a task, and of each task that goes another way: where, and the prompt that `encode` is told."""
    # The model's default prompt is for `encode` itself to find.
    ways: dict[Task | None, tuple[Entrance, str | None]] = {None: (found[None], None)}
    default_prompt = own_prompt(model, None)
    for task, entrance in found.items():
        prompt = own_prompt(model, task)
        if task is not None and (entrance, prompt) != (found[None], default_prompt):
            ways[task] = (entrance, prompt)
    return ways


def _encode(
    model: sentence_transformers.SentenceTransformer, ways: Iterable[tuple[Entrance, str | None]]
) -> list[Vectors]:
    """What sentence-transformers gives for the probe texts on each way, float32, (n_probe_texts, dim)."""
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


def _routes(
    model: sentence_transformers.SentenceTransformer,
    ways: Mapping[Task | None, tuple[Entrance, str | None]],
    references: Sequence[Vectors],
    readers: Mapping[Entrance, Reader],
    backends: "Mapping[Entrance, TorchBackend]",
    prompts: Mapping[str, str],
) -> Routes:
    return {
        task: Route(
            readers[entrance],
            backends[entrance],
            prompt=entrance.prompt(own_prompt(model, task)),
            prompts={name: entrance.prompt(text) for name, text in prompts.items()},
            reference=reference,
        )
        for (task, (entrance, _)), reference in zip(ways.items(), references, strict=True)
    }


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

    def warm_up(self, window: int | None) -> None:
        """Do nothing: torch compiles nothing for a shape."""

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
            memory.trim()
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


def _feed(first: Transformer | StaticEmbedding) -> Padded | Concatenated:
    """What makes of a batch what the module reads."""
    if isinstance(first, StaticEmbedding):
        return Concatenated()
    tokenizer: Any = first.tokenizer
    return Padded(Padding(_pad_id(first), is_left=tokenizer.padding_side == "left"))


def _pad_id(first: Transformer) -> int:
    tokenizer: Any = first.tokenizer
    return tokenizer.pad_token_id or 0


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
