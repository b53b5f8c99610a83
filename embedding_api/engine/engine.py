"""The door to the engine room: `Engine.embed(model, texts)` gives vectors. The web room knows this file alone."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from embedding_api.engine.backends import Route, Task
from embedding_api.engine.backends.text import Prompt, Reading, Text, Tokens
from embedding_api.engine.models.registry import Model, Registry
from embedding_api.engine.scheduling.admission import UNLIMITED, Limits
from embedding_api.engine.scheduling.cost import Cost
from embedding_api.engine.scheduling.timing import Timing
from embedding_api.engine.work import Vectors
from embedding_api.engine.workers.dispatch import Dispatcher
from embedding_api.engine.workers.exchange import Exchange, Seat
from embedding_api.errors import (
    ContextLengthExceededError,
    DeadlineExceededError,
    NonFiniteVectorError,
    OverloadedError,
    TokenIdsNotAcceptedError,
    UnknownPromptError,
    UnsupportedDimensionsError,
)
from embedding_api.request import Caller
from embedding_api.telemetry import metrics

logger = logging.getLogger(__name__)


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
        costs: Of a batch, for each backend of the models.
        n_seats: The most workers that send each other batches; 0 if each computes alone.
        n_computing: How many workers compute at the same time.
        limits: What all workers take.
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
        limits: Limits = UNLIMITED,
        accepts_token_ids: bool = False,
        inference_timeout_s: float = 30.0,
    ) -> None:
        self.models = models
        self._places = {backend: place for place, backend in enumerate(models.backends)}
        self._n_seats = n_seats
        self._exchange: Exchange | None = None
        self._accepts_token_ids = accepts_token_ids
        self._inference_timeout_s = inference_timeout_s
        backends = models.backends
        self._dispatcher = Dispatcher(list(backends.values()), list(backends), costs, n_computing, limits)

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

    def is_full(self) -> bool:
        """Whether a request that came now would be refused with `overloaded`."""
        return (admission := self._dispatcher.admission) is not None and admission.is_full()

    def has_room(self, n_bytes: int) -> bool:
        """Whether requests, in all workers, may take so many bytes more than `say_arriving` told."""
        return (admission := self._dispatcher.admission) is None or admission.has_room(n_bytes)

    def overloaded(self) -> OverloadedError:
        """The error for a request that is not even read, since the queue is full; after `start`."""
        if self._dispatcher.admission is None:
            raise RuntimeError("asked before the start; this is a bug")
        return self._dispatcher.admission.overloaded()

    def say_arriving(self, n_tokens: int, n_bytes: int) -> None:
        """Tells all workers what this one holds of requests.

        Args:
            n_tokens: A guess at the tokens of those that `embed` has not been called for.
            n_bytes: The bytes of all that are not answered.
        """
        self._dispatcher.say_arriving(n_tokens, n_bytes)

    def retire_if_stuck(self) -> bool:
        """Whether a batch that this process computes has taken longer than it may: then the process must end soon.

        That batch is given up, and what waits is left to other workers.
        """
        return self._dispatcher.retire(self._inference_timeout_s)

    def refuse_rest(self) -> None:
        """Whoever still waits gets NotReadyError."""
        self._dispatcher.refuse_rest()

    def problem(self) -> str | None:
        """What keeps this process from answering, or None if nothing does."""
        if (problem := self._dispatcher.problem()) is not None:
            return problem
        busy_for_s = self._dispatcher.busy_for_s()
        # Told before the worker is replaced for it, so that whoever asks every few seconds sees it.
        if busy_for_s > self._inference_timeout_s / 2:
            return f"the batch in work has taken {busy_for_s:.0f} s so far"
        return None

    def embed(
        self,
        model_name: str,
        texts: Sequence[Text],
        *,
        input_type: Task | None = None,
        prompt_name: str | None = None,
        dimensions: int | None = None,
        truncate: bool = True,
        caller: Caller | None = None,
        timing: Timing | None = None,
    ) -> Embeddings:
        """Vectors of texts.

        Args:
            model_name: Name or alias of a model that is served.
            texts: At least one string, none empty; or sequences of the model's own token ids.
            input_type: What they are to a search, which matters to models that have a route for it.
            prompt_name: What stands before each of them, in the place of the route's own prompt.
            dimensions: Keep only so many leading components; of unit length again if the model's vectors are.
            truncate: Whether a text over the model's window is cut to it.
            caller: Who waits for them, and until when; for ever if None.
            timing: Filled as far as the request comes, also if it fails; the answer has it, too.

        Raises:
            RequestError: The caller can mend it; nothing was computed.
            DeadlineExceededError: The caller's deadline passed; what was not begun will not be computed.
            NonFiniteVectorError: The model gave NaN or infinity.
        """
        model = self.models.get(model_name)
        route = model.routes.get(input_type, model.route)
        prompt = route.prompt if prompt_name is None else _prompt(model, route, prompt_name)
        _check_dimensions(model, route, dimensions)
        if not isinstance(texts[0], str):
            self._check_token_ids(wants_prompt=bool(prompt.text and (input_type or prompt_name)))
        caller = caller or Caller()
        if caller.remaining_s() == 0:
            raise DeadlineExceededError(caller.deadline_message())
        timing = timing or Timing()
        timing.read_s = monotonic()
        reading = route.reader.read(texts, prompt)
        timing.queued_s = monotonic()
        if not truncate:
            _refuse_long(model, reading.tokens)
        vectors = self._compute(model, route, reading, caller, timing)
        embeddings = Embeddings(
            model=model,
            vectors=_shortened(vectors, dimensions, is_normalized=route.is_normalized),
            n_tokens=sum(len(tokens.ids) for tokens in reading.tokens),
            truncated=tuple(tokens.truncated for tokens in reading.tokens),
            timing=timing,
        )
        metrics.TEXTS.labels(model.name).inc(len(vectors))
        metrics.TOKENS.labels(model.name).inc(embeddings.n_tokens)
        metrics.TRUNCATED.labels(model.name).inc(sum(embeddings.truncated))
        return embeddings

    def _check_token_ids(self, *, wants_prompt: bool) -> None:
        if not self._accepts_token_ids:
            raise TokenIdsNotAcceptedError(
                "input holds token ids, which this server refuses: most come from another model's tokenizer; "
                "send the texts themselves (LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False)",
                param="input",
            )
        if wants_prompt:
            raise TokenIdsNotAcceptedError(
                "input holds token ids, which are read as they are, without the prompt that input_type or prompt_name "
                "asks for; send the texts themselves, or put the prompt's ids before them and leave those fields out",
                param="input",
            )

    def _compute(self, model: Model, route: Route, reading: Reading, caller: Caller, timing: Timing) -> Vectors:
        ids = [tokens.ids for tokens in reading.tokens]
        job = self._dispatcher.compute(self._places[route.backend], ids, reading.n_prompt_tokens, caller, timing)
        are_good = np.isfinite(job.vectors).all(axis=1)
        if not are_good.all():
            metrics.BAD_VECTORS.labels(model.name).inc(int((~are_good).sum()))
            raise NonFiniteVectorError(f"model {model.name} gave NaN or infinity")
        return job.vectors


def _prompt(model: Model, route: Route, name: str) -> Prompt:
    if name not in route.prompts:
        known = ", ".join(repr(one[:100]) for one in route.prompts)
        raise UnknownPromptError(
            f"prompt_name={name[:100]!r} is no prompt of model {model.name}, which has {known or 'none'}; send one "
            "that it has, or none",
            param="prompt_name",
        )
    return route.prompts[name]


def _check_dimensions(model: Model, route: Route, dimensions: int | None) -> None:
    if dimensions is not None and dimensions > route.backend.dim:
        raise UnsupportedDimensionsError(
            f"dimensions={dimensions} is more than the {route.backend.dim} that model {model.name} has",
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
