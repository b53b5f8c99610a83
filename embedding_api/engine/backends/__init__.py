"""Backends compute: token ids in, vectors out. One file a backend; `convert.py` makes what openvino reads."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from embedding_api.engine.backends import proof
from embedding_api.engine.backends.text import Prompt, Reader
from embedding_api.engine.findings import Finding
from embedding_api.engine.work import Ids, Vectors

# What a text may be to a search; sentence-transformers calls it a task.
Task = Literal["query", "document"]


class Backend(Protocol):
    """What the engine asks of a backend.

    Attributes:
        name: What it is called in GET /v1/models, such as `torch`.
        precision: The arithmetic it computes in, such as `float32`.
        dim: Components of a vector.
        max_batch_tokens: The size of a batch that suits it best, in tokens that are computed.
    """

    name: str
    precision: str
    dim: int
    max_batch_tokens: int

    def prepare(self) -> None:
        """Makes this thread ready to compute; runs once, in the inference thread of a worker."""

    def warm_up(self, window: int | None) -> None:
        """Compute, in the process that will fork, what the first batches would otherwise compile in every worker.

        Args:
            window: The most tokens that the model reads of a text; None for no limit.
        """

    def n_computed(self, n_texts: int, longest: int, n_tokens: int) -> int:
        """See `Layout.n_computed`."""

    def embed(self, batch: Sequence[Ids], n_prompt_tokens: int) -> Vectors:
        """Vectors of one batch.

        Args:
            batch: Token ids of each text, int64, (n_tokens,), n_tokens >= 1.
            n_prompt_tokens: How many leading tokens of each text pooling leaves out.

        Returns:
            float32, (len(batch), dim), in the batch's order.
        """


@dataclass(frozen=True, eq=False)
class Route:
    """A way from texts to vectors.

    Attributes:
        prompt: What stands before a text, if the request names no prompt.
        prompts: Those that a request may name; none if all of the model's are empty.
        reference: What `SentenceTransformer.encode` gives on this way for the probe texts in float32,
            (n_probe_texts, dim).
    """

    reader: Reader
    backend: Backend
    prompt: Prompt
    prompts: Mapping[str, Prompt]
    reference: Vectors

    def probe(self) -> Vectors:
        """Return the backend's vectors of the probe texts, float32, (n_probe_texts, dim)."""
        reading = self.reader.read(proof.PROBE_TEXTS, self.prompt)
        return self.backend.embed([tokens.ids for tokens in reading.tokens], reading.n_prompt_tokens)

    @functools.cached_property
    def is_normalized(self) -> bool:
        """Whether its vectors are of unit length."""
        return proof.all_of_unit_length(self.reference)


# The ways through one model, by what a text is to a search; None stands for what has no way of its own.
Routes = Mapping[Task | None, Route]


class Loaded(NamedTuple):
    """A model, as a backend has loaded it.

    Attributes:
        routes: At least that of None.
        findings: What its operator should know.
    """

    routes: Routes
    findings: Sequence[Finding] = ()


class UnfitError(Exception):
    """A backend cannot serve a model, though another may; the message says why, in one clause."""
