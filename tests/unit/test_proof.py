"""The measure of the difference from sentence-transformers, and its bounds."""

import numpy as np
import pytest

from embedding_api.engine.backends import proof

REFERENCE = np.array([[3, 4], [0, 2]], dtype=np.float32)
TURNED = np.array([[3, 4], [0.1, 2]], dtype=np.float32)
NUDGED = np.array([[3, 4], [0.04, 2]], dtype=np.float32)


@pytest.mark.parametrize(
    ("precision", "vectors", "value", "holds"),
    [
        ("float32", REFERENCE, 0, True),
        ("float32", REFERENCE * (1 + 1e-4), 1e-4, False),
        ("float32", REFERENCE * np.nan, np.inf, False),
        ("float32", REFERENCE[:1], np.inf, False),
        ("float16", REFERENCE * 1.01, 1, True),
        ("float16", NUDGED, 0.9998, False),
        ("float16", np.full((2, 2), np.inf), -1, False),
        ("bfloat16", REFERENCE * 1.01, 1, True),
        ("bfloat16", NUDGED, 0.9998, True),
        ("bfloat16", TURNED, 0.99875, False),
        ("int8", TURNED, 0.99875, True),
        ("int8", -REFERENCE, -1, False),
        ("int8", np.full((2, 2), np.inf), -1, False),
    ],
)
def test_a_proof_holds_within_the_bound_of_its_precision(precision, vectors, value, holds):
    proven = proof.prove(REFERENCE, np.asarray(vectors, dtype=np.float32), precision)
    assert proven.holds == holds
    assert proven.value == pytest.approx(value, rel=0.01)
    assert str(proven)


def test_the_worst_of_several_proofs_is_found_whatever_they_measure():
    of = proof.LARGEST_DIFFERENCE, proof.COSINE
    shares = [
        proof.Proof(of[0], 1e-6, 2e-6).share,
        proof.Proof(of[1], 0.9996, 0.9995).share,
        proof.Proof(of[1], 1, 0.98).share,
    ]
    assert shares == pytest.approx([0.5, 0.8, 0])
