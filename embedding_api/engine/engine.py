"""The door to the engine: `Engine.embed(model, texts)` returns vectors."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic

import numpy as np

from embedding_api.engine.backends import Route, Task
from embedding_api.engine.backends.text import MOST_CHARACTERS, Prompt, Reading, Text, Tokens
from embedding_api.engine.models.registry import Model, Registry
from embedding_api.engine.scheduling.board import Seat
from embedding_api.engine.scheduling.timing import Timing
from embedding_api.engine.work import Lane, Vectors
from embedding_api.engine.workers.runner import Runner
from embedding_api.engine.workers.setup import Setup
from embedding_api.errors import (
    ContextLengthExceededError,
    NonFiniteVectorError,
    NotReadyError,
    TokenIdsNotAcceptedError,
    UnknownPromptError,
    UnsupportedDimensionsError,
)
from embedding_api.request import Caller
from embedding_api.telemetry import metrics


@dataclass(frozen=True)
class Embeddings:
    """The vectors of a request.

    Attributes:
        model: The model that computed them.
        vectors: float32, (n_texts, dim), in the order of the texts.
        n_tokens: Tokens that the model read, over all texts, special tokens and prompts included.
        truncated: For each text True if it was cut to the model's window.
        timing: Where the time went.
    """

    model: Model
    vectors: Vectors
    n_tokens: int
    truncated: tuple[bool, ...]
    timing: Timing = field(default_factory=Timing)


class Engine:
    """Turns texts into vectors, in the order and number in which they came. Safe for several threads.

    Args:
        models: The models that are served.
        setup: The setup of the workers, with the backends of these models.
        accepts_token_ids: True if `embed` accepts a model's own token ids in place of texts.

    Attributes:
        models: See above.
        setup: See above.
    """

    def __init__(self, models: Registry, setup: Setup, *, accepts_token_ids: bool = False) -> None:
        self.models = models
        self.setup = setup
        self._accepts_token_ids = accepts_token_ids
        self._runner: Runner | None = None
        self._is_closed = self._has_ended = False
        self._starting = threading.Lock()

    @property
    def runner(self) -> Runner:
        """This process's part in computing, started on first use; in a server after the fork, by `start`."""
        return self._runner or self.start()

    def start(self, seat: Seat | None = None) -> Runner:
        """Start to compute in this process.

        Args:
            seat: Of this worker on the exchange; None if it computes alone.

        Raises:
            NotReadyError: The engine is closed.
            Exception: What `Runner.start` raises.
        """
        with self._starting:
            if self._is_closed:
                raise NotReadyError("this worker is stopping")
            if self._runner is None:
                self._runner = Runner(self.setup, seat)
                self._runner.start()
            return self._runner

    def problem(self) -> str | None:
        """Return what keeps this process from answering; None if nothing does, or nothing has started."""
        return None if self._runner is None else self._runner.problem()

    def close(self) -> None:
        """Finish the batch on the core, and refuse what waits. A second call does nothing."""
        with self._starting:
            self._is_closed = True
        if self._has_ended:
            return
        if self._runner is not None:
            self._runner.close()
        if self.setup.exchange is not None:
            self.setup.exchange.close()
        # A signal may have ended an earlier call in the middle.
        self._has_ended = True

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
        """Return the vectors of texts.

        Args:
            model_name: Name or alias of a model that is served.
            texts: At least one string, none empty; or sequences of the model's own token ids.
            input_type: The role of the texts in a search, for models that have a route for it.
            prompt_name: The prompt before each text, in place of the route's own.
            dimensions: The number of leading components to keep. Vectors of unit length are scaled to it again.
            truncate: True to cut a text to the model's window; False to refuse a longer one.
            caller: The client that waits; one that waits for ever if None.
            timing: Filled as far as the request gets, also if it fails; the result has it, too.

        Raises:
            RequestError: The request is wrong. Nothing was computed.
            DeadlineExceededError: The caller's deadline passed. Texts that no core has will not be computed.
            NonFiniteVectorError: The model gave NaN or infinity.
        """
        model = self.models.get(model_name)
        route = model.routes.get(input_type, model.route)
        prompt = route.prompt if prompt_name is None else _prompt(model, route, prompt_name)
        _check_dimensions(model, route, dimensions)
        if not isinstance(texts[0], str):
            self._check_token_ids(wants_prompt=bool(prompt.text and (input_type or prompt_name)))
        caller = caller or Caller()
        caller.require_time()
        timing = timing or Timing()
        timing.read_s = monotonic()
        reading = route.reader.read(texts, prompt)
        timing.queued_s = monotonic()
        if not truncate:
            _refuse_long(model, route.reader.window or 0, reading.tokens)
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
        lane = Lane(self.setup.backends.index(route.backend), reading.n_prompt_tokens)
        vectors: Vectors = self.runner.compute(lane, [tokens.ids for tokens in reading.tokens], caller, timing).values
        are_good = np.isfinite(vectors).all(axis=1)
        if not are_good.all():
            metrics.BAD_VECTORS.labels(model.name).inc(int((~are_good).sum()))
            raise NonFiniteVectorError(f"model {model.name} gave NaN or infinity")
        return vectors


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
            f"dimensions={str(dimensions)[:100]} is more than the {route.backend.dim} that model {model.name} has; "
            f"send at most {route.backend.dim}, or leave dimensions out",
            param="dimensions",
        )


def _refuse_long(model: Model, window: int, tokens: Sequence[Tokens]) -> None:
    for index, item in enumerate(tokens):
        if item.truncated:
            size = f"has at least {item.n_source_tokens} tokens"
            if item.n_source_tokens <= window:
                size = f"has {len(item.ids)} tokens in its first {MOST_CHARACTERS} characters, and the rest is unread"
            raise ContextLengthExceededError(
                f"input[{index}] {size}, and the maximum context length of model {model.name} is {window} tokens; "
                "shorten it, or let it be cut with truncate=true",
                param=f"input[{index}]",
            )


def _shortened(vectors: Vectors, dimensions: int | None, *, is_normalized: bool) -> Vectors:
    """The leading components; a vector of which they are all zero stays as it is."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    vectors = np.ascontiguousarray(vectors[:, :dimensions])
    if is_normalized:
        lengths: Vectors = np.linalg.norm(vectors, axis=1, keepdims=True)
        lengths[lengths == 0] = 1
        # Not in place: another request may have the same rows.
        vectors = np.divide(vectors, lengths, dtype=np.float32)
    return vectors
