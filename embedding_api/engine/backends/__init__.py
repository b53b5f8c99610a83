"""Backends compute: token ids in, vectors out. torch and OpenVINO stay in this folder."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from embedding_api.engine.backends import proof
from embedding_api.engine.backends.text import Prompt, Reader
from embedding_api.engine.findings import Finding
from embedding_api.engine.work import Ids, Result, Vectors

# The role of a text in a search. The API calls it input_type, sentence-transformers calls it a task.
Task = Literal["query", "document"]


class Backend(Protocol):
    """Computes the vectors of one model, or of one route through a model.

    Attributes:
        name: The name in GET /v1/models, such as `torch`.
        precision: The arithmetic that it computes in, such as `float32`.
        dim: Components of a vector.
        target_batch_tokens: The best size of a batch, in computed tokens.
        max_batches_per_thread: Batches after which another thread must go on, so that the memory of the first is freed.
    """

    name: str
    precision: str
    dim: int
    target_batch_tokens: int
    max_batches_per_thread: int

    def warm_up(self, window: int | None) -> None:
        """Compute, in the process that will fork, what every worker would otherwise compile for its first batches.

        Args:
            window: The most tokens that the model reads of a text; None for no limit.
        """

    def prepare(self, n_threads: int) -> None:
        """Make the calling thread ready to compute; called once, in the first inference thread of a worker.

        Args:
            n_threads: See `use_threads`.
        """

    def use_threads(self, n_threads: int) -> None:
        """Let batches take so many threads on a CPU, the calling one included.

        OpenVINO keeps the highest number that a process has used.
        """

    def n_computed(self, n_texts: int, longest: int, n_tokens: int) -> int:
        """Return how many tokens the model computes for a batch, padding included.

        Args:
            n_texts: Texts of the batch.
            longest: Tokens of its longest text.
            n_tokens: Tokens of all its texts.
        """

    def compute(self, inputs: Sequence[Ids], n_prompt_tokens: int) -> Result:
        """Return the vectors of one batch, float32, (n_texts, dim), in the order of the batch.

        Args:
            inputs: Token ids of each text, int64, (n_tokens,), n_tokens >= 1.
            n_prompt_tokens: Leading tokens of each text that pooling leaves out.
        """


@dataclass(frozen=True, eq=False)
class Route:
    """A way from texts to vectors.

    Attributes:
        reader: Turns texts into token ids.
        backend: Turns token ids into vectors.
        prompt: The text before each text where the request names no prompt.
        prompts: The prompts that a request may name; empty if the model has none.
        reference: The vectors that `SentenceTransformer.encode` gives on this route for the probe texts in float32,
            (n_probe_texts, dim).
    """

    reader: Reader
    backend: Backend
    prompt: Prompt
    prompts: Mapping[str, Prompt]
    reference: Vectors

    def probes(self) -> Sequence[Vectors]:
        """Return the backend's vectors of the probe texts: in one batch, and each alone; float32, (n_texts, dim)."""
        reading = self.reader.read(proof.PROBE_TEXTS, self.prompt)
        texts = [tokens.ids for tokens in reading.tokens]
        together, *alone = (
            self.backend.compute(batch, reading.n_prompt_tokens).values for batch in (texts, *([ids] for ids in texts))
        )
        return [together, np.concatenate(alone)]

    @functools.cached_property
    def is_normalized(self) -> bool:
        """True if the vectors are of unit length."""
        return proof.all_of_unit_length(self.reference)


# The routes of one model by task. None is the route of texts without a task, and of tasks without a route of their own.
Routes = Mapping[Task | None, Route]


class Loaded(NamedTuple):
    """A model that a backend has loaded.

    Attributes:
        routes: The route of None, and of each task that has its own.
        findings: The facts that the operator should know.
    """

    routes: Routes
    findings: Sequence[Finding] = ()


class UnfitError(Exception):
    """One backend cannot serve a model, though another may. The message is one clause that says why."""
