"""Whether a backend gives the vectors that sentence-transformers gives. Pure functions on arrays."""

import itertools

import numpy as np

from embedding_api.engine.arrays import Vectors

# The largest difference of any component, as a share of its vector's length. The same arithmetic in another batch
# differs by up to 2.1e-7 with MiniLM; a mask or a pooling read wrongly differs by 1e-2 and more.
BOUND = 1e-5

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


def largest_difference(reference: Vectors, vectors: Vectors) -> float:
    """The largest difference of any component, divided by the length of the reference vector it belongs to.

    Args:
        reference: float32, (n_texts, dim).
        vectors: The same shape.

    Returns:
        A share without unit, infinity where either holds NaN or infinity, or where the shapes differ.
    """
    if reference.shape != vectors.shape or not (np.isfinite(reference).all() and np.isfinite(vectors).all()):
        return float("inf")
    lengths = np.maximum(np.linalg.norm(reference, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return float((np.abs(reference - vectors) / lengths).max())


def tells_apart(vectors: Vectors) -> bool:
    """Whether different texts have different vectors; without its tokenizer's files a model knows no words."""
    return all(not np.allclose(one, other, rtol=0, atol=1e-6) for one, other in itertools.combinations(vectors, 2))


def all_of_unit_length(vectors: Vectors) -> bool:
    """Whether the model normalizes: every vector is 1 long within 1e-4, which chance does not give every time."""
    return bool(np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-4))
