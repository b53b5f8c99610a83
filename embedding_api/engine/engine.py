"""The door to the engine room: `Engine.embed(model, texts)` gives vectors. The web room knows this file alone."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from embedding_api import cores
from embedding_api.config import Settings
from embedding_api.engine import cost, registry
from embedding_api.engine.arrays import Vectors
from embedding_api.engine.cost import Cost
from embedding_api.engine.dispatch import Dispatcher
from embedding_api.engine.exchange import WORKERS_CAN_SEND, Exchange, Seat
from embedding_api.engine.registry import Model, Registry
from embedding_api.engine.text import Text, Tokens
from embedding_api.errors import (
    ContextLengthExceededError,
    NonFiniteVectorError,
    TokenIdsNotAcceptedError,
    UnsupportedDimensionsError,
)

logger = logging.getLogger(__name__)


@dataclass
class Timing:
    """Where a request's time went, in seconds.

    Attributes:
        tokenize_s: From the texts to their token ids.
        queue_s: Until a core took the first of them.
        inference_s: From then on until the last of them had its vector.
    """

    tokenize_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0


@dataclass(frozen=True)
class Embeddings:
    """What a request's texts became.

    Attributes:
        model: The model that read them.
        vectors: float32, (n_texts, dim), in the order of the texts.
        n_tokens: Tokens that the model read, over all texts, special tokens and prompts included.
        truncated: For each text whether it was cut to the model's window.
    """

    model: Model
    vectors: Vectors
    n_tokens: int
    truncated: tuple[bool, ...]
    timing: Timing = field(default_factory=Timing)


class Engine:
    """Turns texts into vectors, in the order and number in which they came. Safe for several threads.

    Args:
        models: What is served.
        costs: Of a batch, for each model.
        n_seats: The most workers that send each other batches; 0 if each computes alone.
        n_computing: How many workers compute at the same time.
        accepts_token_ids: Whether `embed` takes the model's own token ids in the place of texts.
        inference_timeout_s: Seconds after which a batch counts as stuck.
    """

    def __init__(
        self,
        models: Registry,
        costs: Sequence[Cost],
        *,
        n_seats: int = 0,
        n_computing: int = 1,
        accepts_token_ids: bool = False,
        inference_timeout_s: float = 30.0,
    ) -> None:
        self.models = models
        self._places = {model.name: place for place, model in enumerate(models.models)}
        self._n_seats = n_seats
        self._exchange: Exchange | None = None
        self._accepts_token_ids = accepts_token_ids
        self._inference_timeout_s = inference_timeout_s
        self._dispatcher = Dispatcher([model.backend for model in models.models], costs, n_computing)

    def take_seat(self) -> Seat | None:
        """A place on the exchange for a worker that is about to be forked; None if there is none, so it works alone.

        The master calls it, and `leave` of what it got when that worker is gone.
        """
        if self._n_seats and self._exchange is None:
            self._exchange = Exchange(self._n_seats)
        seat = None if self._exchange is None else self._exchange.take_seat()
        if self._n_seats and seat is None:
            logger.warning("all %d seats are taken; a new worker computes alone until others are gone", self._n_seats)
        return seat

    def start(self, seat: Seat | None = None) -> None:
        """Starts to compute in this process; in a worker, after the fork. Raises what a backend's `prepare` raises."""
        self._dispatcher.start(seat)

    def close(self) -> None:
        """Finishes the batch in work and ends the threads; requests that still wait get NotReadyError."""
        self._dispatcher.close()
        if self._exchange is not None:
            self._exchange.close()

    def problem(self) -> str | None:
        """What keeps this process from answering, or None if nothing does."""
        if (problem := self._dispatcher.problem()) is not None:
            return problem
        busy_for_s = self._dispatcher.busy_for_s()
        if busy_for_s > self._inference_timeout_s:
            return f"the batch in work has taken {busy_for_s:.0f} s so far"
        return None

    def embed(
        self, model_name: str, texts: Sequence[Text], *, dimensions: int | None = None, truncate: bool = True
    ) -> Embeddings:
        """Vectors of texts.

        Args:
            model_name: Name or alias of a model that is served.
            texts: At least one string, none empty; or sequences of the model's own token ids.
            dimensions: Keep only so many leading components; of unit length again if the model's vectors are.
            truncate: Whether a text over the model's window is cut to it.

        Raises:
            RequestError: The caller can mend it; nothing was computed.
            NonFiniteVectorError: The model gave NaN or infinity.
        """
        model = self.models.get(model_name)
        _check_dimensions(model, dimensions)
        if not isinstance(texts[0], str) and not self._accepts_token_ids:
            raise TokenIdsNotAcceptedError(
                "input holds token ids, which this server refuses: most come from another model's tokenizer; "
                "send the texts themselves (LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False)",
                param="input",
            )
        timing = Timing()
        started = monotonic()
        reading = model.reader.read(texts)
        timing.tokenize_s = monotonic() - started
        if not truncate:
            _refuse_long(model, reading.tokens)
        vectors = self._compute(model, reading.tokens, reading.n_prompt_tokens, timing)
        return Embeddings(
            model=model,
            vectors=_shortened(vectors, dimensions, is_normalized=model.is_normalized),
            n_tokens=sum(len(tokens.ids) for tokens in reading.tokens),
            truncated=tuple(tokens.truncated for tokens in reading.tokens),
            timing=timing,
        )

    def _compute(self, model: Model, tokens: Sequence[Tokens], n_prompt_tokens: int, timing: Timing) -> Vectors:
        job = self._dispatcher.compute(self._places[model.name], [item.ids for item in tokens], n_prompt_tokens)
        timing.queue_s, timing.inference_s = job.queue_s, job.inference_s
        if not np.isfinite(job.vectors).all():
            raise NonFiniteVectorError(f"model {model.name} gave NaN or infinity")
        return job.vectors


def load_engine(settings: Settings) -> Engine:
    """Loads the models of the settings, in the process that will fork.

    Raises:
        StartError: A model or the device cannot be had.
    """
    models = registry.load(settings)
    on_cpu = settings.device == "cpu"
    # A device cannot be used before the fork.
    costs = [cost.measure(model.backend) if on_cpu else cost.UNMEASURED for model in models.models]
    n_computing = min(settings.workers, cores.count()) if on_cpu else 1
    logger.info(
        "%d usable cores: %d workers, of which %d compute at a time, with %d threads each%s",
        cores.count(),
        settings.workers,
        n_computing,
        max(1, cores.count() // settings.workers),
        "; batches travel between them" if WORKERS_CAN_SEND and settings.workers > 1 else "",
    )
    return Engine(
        models,
        costs,
        # Workers that are replaced overlap with the new ones.
        n_seats=4 * settings.workers + 4 if WORKERS_CAN_SEND else 0,
        n_computing=n_computing,
        accepts_token_ids=settings.token_ids == "model",  # noqa: S105 - tokens of texts, no password
        inference_timeout_s=settings.inference_timeout_s,
    )


def _check_dimensions(model: Model, dimensions: int | None) -> None:
    if dimensions is not None and dimensions > model.backend.dim:
        raise UnsupportedDimensionsError(
            f"dimensions={dimensions} is more than the {model.backend.dim} that model {model.name} has",
            param="dimensions",
        )


def _refuse_long(model: Model, tokens: Sequence[Tokens]) -> None:
    for index, item in enumerate(tokens):
        if item.truncated:
            raise ContextLengthExceededError(
                f"input[{index}] has at least {item.n_source_tokens} tokens, and the maximum context length of model "
                f"{model.name} is {len(item.ids)} tokens; shorten it, or let it be cut with truncate=true",
                param=f"input[{index}]",
            )


def _shortened(vectors: Vectors, dimensions: int | None, *, is_normalized: bool) -> Vectors:
    """The leading components; a vector of which they are all zero stays as it is."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    vectors = np.ascontiguousarray(vectors[:, :dimensions])
    if is_normalized:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.where(lengths > 0, lengths, 1)
    return vectors
