"""Compare a backend's vectors with those of sentence-transformers. Pure functions on arrays."""

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedding_api.engine.work import Vectors

# The measure and its bound for each precision of a backend.
#
# In float32, another order of the same arithmetic changes the vectors of MiniLM by up to 2.1e-7. A wrong mask or a
# wrong pooling changes them by 1e-2 and more. Less precision turns each vector a little, which the cosine measures.
LARGEST_DIFFERENCE, COSINE = "largest_difference", "cosine"
_BOUNDS = {
    "float32": (LARGEST_DIFFERENCE, 2e-6),
    "float16": (COSINE, 0.9999),
    "bfloat16": (COSINE, 0.9995),
    "int8": (COSINE, 0.98),
}

# Texts of very different lengths, so that in one padded batch all rows but one have padding, which must not matter.
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
    """The comparison of a backend's vectors of the probe texts with sentence-transformers' own.

    Attributes:
        measure: `largest_difference` of any component, as a share of its vector's length, or `cosine` of the worst
            text.
        value: The measured value.
        bound: The largest difference, or the smallest cosine, with which a model is served.
    """

    measure: str
    value: float
    bound: float

    @property
    def holds(self) -> bool:
        """True if the value is within the bound. NaN never is."""
        return self.share <= 1

    @property
    def share(self) -> float:
        """The distance from a perfect value, as a share of the allowed distance."""
        perfect = 0 if self.measure == LARGEST_DIFFERENCE else 1
        return (self.value - perfect) / (self.bound - perfect)

    def __str__(self) -> str:
        """Return the value and the bound for a log line."""
        if self.measure == LARGEST_DIFFERENCE:
            return f"largest difference {self.value:.1e} (at most {self.bound:.0e})"
        return f"cosine {self.value:.5f} (at least {self.bound})"


def prove(reference: Vectors, vectors: Vectors, precision: str) -> Proof:
    """Compare a backend's vectors with the reference.

    Args:
        reference: float32, (n_texts, dim).
        vectors: float32, the same shape. Another shape, NaN and infinity do not hold.
        precision: The arithmetic of the backend: float32, float16, bfloat16 or int8.
    """
    measure, bound = _BOUNDS[precision]
    if reference.shape != vectors.shape or not (are_finite(reference) and are_finite(vectors)):
        return Proof(measure, float("inf") if measure == LARGEST_DIFFERENCE else -1.0, bound)
    if measure == LARGEST_DIFFERENCE:
        value = (np.abs(reference - vectors) / _lengths(reference)).max()
    else:
        value = (reference / _lengths(reference) * (vectors / _lengths(vectors))).sum(axis=1).min()
    return Proof(measure, float(value), bound)


def _lengths(vectors: Vectors) -> npt.NDArray[np.float32]:
    """Return the lengths of vectors, float32, (n_texts, 1). None is zero."""
    return np.asarray(np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny))


def are_finite(vectors: Vectors) -> bool:
    """Return True if no component is NaN or infinity."""
    return bool(np.isfinite(vectors).all())


def tells_apart(vectors: Vectors) -> bool:
    """Return True if all vectors differ. Without its tokenizer's files a model gives many texts the same vector."""
    return all(not np.allclose(one, other, rtol=0, atol=1e-6) for one, other in itertools.combinations(vectors, 2))


def all_of_unit_length(vectors: Vectors) -> bool:
    """Return True if the length of each vector is 1 within 1e-4, so that the model must normalize its vectors."""
    return bool(np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-4))
