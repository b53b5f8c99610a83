"""Whether a backend gives the vectors that sentence-transformers gives. Pure functions on arrays."""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedding_api.engine.work import Vectors

# By the precision that a backend computes in: what is measured, and the worst that is served.
#
# In float32 the same arithmetic in another batch or order differs by up to 2.1e-7 with MiniLM; a mask or a pooling read
# wrongly differs by 1e-2 and more. With less precision each text's vector turns a little: by how much is told to users.
LARGEST_DIFFERENCE, COSINE = "largest_difference", "cosine"
_BOUNDS = {"float32": (LARGEST_DIFFERENCE, 2e-6), "bfloat16": (COSINE, 0.9995), "int8": (COSINE, 0.98)}

# Of very different lengths, so that in one padded batch every row but one has padding to be ignored.
PROBE_TEXTS = (
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "Où est la bibliothèque ? 图书馆在哪里",
    "Embeddings map texts to vectors such that texts of similar meaning lie close to each other. " * 4,
    "UPPER lower 12345 !?",
    "the cat sat on the mat",
    "tax law for small firms",
)


@dataclass(frozen=True)
class Proof:
    """How near a backend's vectors of the probe texts came to sentence-transformers' own.

    Attributes:
        measure: `largest_difference` of any component, as a share of its vector's length, or `cosine`, of the worst
            text.
        value: What was measured.
        bound: The largest difference or the smallest cosine that is served.
    """

    measure: str
    value: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the value is within the bound; NaN is not."""
        return self.value <= self.bound if self.measure == LARGEST_DIFFERENCE else self.value >= self.bound

    @property
    def share(self) -> float:
        """How far it is from perfect, as a share of how far it may be."""
        if self.measure == LARGEST_DIFFERENCE:
            return self.value / self.bound
        return (1 - self.value) / (1 - self.bound)

    def __str__(self) -> str:
        """For logs and people."""
        if self.measure == LARGEST_DIFFERENCE:
            return f"largest difference {self.value:.1e} (at most {self.bound:.0e})"
        return f"cosine {self.value:.5f} (at least {self.bound})"


def prove(reference: Vectors, vectors: Vectors, precision: str) -> Proof:
    """Compares a backend's vectors with the reference.

    Args:
        reference: float32, (n_texts, dim).
        vectors: The same, of the same shape if all is well.
        precision: What the backend computes in: float32, bfloat16 or int8.
    """
    measure, bound = _BOUNDS[precision]
    of = largest_difference if measure == LARGEST_DIFFERENCE else smallest_cosine
    return Proof(measure, of(reference, vectors), bound)


def largest_difference(reference: Vectors, vectors: Vectors) -> float:
    """The largest difference of any component, divided by the length of the reference vector it belongs to.

    Args:
        reference: float32, (n_texts, dim).
        vectors: The same shape.

    Returns:
        A share without unit, infinity where either holds NaN or infinity, or where the shapes differ.
    """
    if not _comparable(reference, vectors):
        return float("inf")
    return float((np.abs(reference - vectors) / _lengths(reference)).max())


def smallest_cosine(reference: Vectors, vectors: Vectors) -> float:
    """The smallest cosine of a vector and its reference.

    Args:
        reference: float32, (n_texts, dim).
        vectors: The same shape.

    Returns:
        From -1 to 1; -1 where either holds NaN or infinity, or where the shapes differ.
    """
    if not _comparable(reference, vectors):
        return -1.0
    return float((reference / _lengths(reference) * (vectors / _lengths(vectors))).sum(axis=1).min())


def _comparable(reference: Vectors, vectors: Vectors) -> bool:
    return reference.shape == vectors.shape and bool(np.isfinite(reference).all() and np.isfinite(vectors).all())


def _lengths(vectors: Vectors) -> npt.NDArray[np.float32]:
    """Never zero, float32, (n_texts, 1)."""
    return np.asarray(np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny))


def tells_apart(vectors: Vectors) -> bool:
    """Whether different texts have different vectors; without its tokenizer's files a model knows no words."""
    return all(not np.allclose(one, other, rtol=0, atol=1e-6) for one, other in itertools.combinations(vectors, 2))


def all_of_unit_length(vectors: Vectors) -> bool:
    """Whether the model normalizes: every vector is 1 long within 1e-4, which chance does not give every time."""
    return bool(np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-4))
