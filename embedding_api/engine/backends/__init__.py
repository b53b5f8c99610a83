"""Backends compute: token ids in, vectors out. One file a backend; `convert.py` makes what openvino reads."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from embedding_api.engine.arrays import Ids, Vectors
from embedding_api.engine.text import Reader


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


class Loaded(NamedTuple):
    """A model as a backend loaded it.

    Attributes:
        reference: What `SentenceTransformer.encode` gives for the probe texts in float32, (n_probe_texts, dim).
        prompts: The model's named prompts, empty ones left out.
    """

    reader: Reader
    backend: Backend
    reference: Vectors
    prompts: Mapping[str, str]


class UnfitError(Exception):
    """A backend cannot serve a model, though another may; the message says why, in one clause."""
