"""What a precision costs in quality: the arithmetic on scores, and texts that calibration has not seen."""

import numpy as np
import pytest

from bench import quality
from bench.quality import CALIBRATION, compare, mean_reciprocal_rank, neighbours_kept, pairs


def scores(*ranks: int, n_passages: int = 30) -> np.ndarray:
    """Return scores (n_queries, n_passages) in which the passage of each query has a certain rank, from 1."""
    found = np.tile(np.linspace(0, 0.5, n_passages), (len(ranks), 1))
    for position, rank in enumerate(ranks):
        others = np.delete(np.arange(n_passages), position)
        found[position, others] = np.linspace(1, 0, n_passages - 1)
        found[position, position] = 2 if rank == 1 else found[position, others[rank - 2]] - 0.001
    return found


def test_the_reciprocal_rank_counts_the_first_ten_places():
    assert mean_reciprocal_rank(scores(1, 1)) == 1
    assert mean_reciprocal_rank(scores(1, 2, 4)) == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    assert mean_reciprocal_rank(scores(10, 11)) == pytest.approx(0.1 / 2)


def test_a_passage_with_the_score_of_all_others_was_not_found():
    assert mean_reciprocal_rank(np.ones((2, 30))) == 0


def test_neighbours_are_kept_in_any_order():
    reference = np.array([np.arange(20.0)])
    same_ten = np.array([[*np.arange(10.0), *np.arange(19.0, 9.0, -1)]])
    without_two = reference.copy()
    without_two[0, :2], without_two[0, 18:] = 100, -1

    assert neighbours_kept(reference, reference) == 1
    assert neighbours_kept(same_ten, reference) == 1
    assert neighbours_kept(without_two, reference) == pytest.approx(0.8)


def test_quality_is_relative_to_the_reference():
    found = compare("service int8", scores(2, 2), scores(1, 2))

    assert (found.n_pairs, found.mrr, found.mrr_kept) == (2, 0.5, pytest.approx(0.5 / 0.75))


def test_a_pair_is_the_first_sentence_of_a_docstring_and_the_rest():
    queries, passages = pairs(500)

    assert len(queries) == len(passages) == 500
    assert len(set(queries)) == len(set(passages)) == 500
    assert all(query.endswith(".") and 25 <= len(query) <= 200 for query in queries)
    assert all(len(passage) >= 80 for passage in passages)
    assert not any(query in passage for query, passage in zip(queries, passages, strict=True))


def test_calibration_has_seen_none_of_the_texts():
    assert pairs(quality.N_PAIRS, CALIBRATION.read_text()) == pairs(quality.N_PAIRS)


def test_a_text_that_calibration_has_seen_is_an_error():
    (query, *_), _ = pairs(500)

    with pytest.raises(ValueError, match="calibration has seen 1 of the texts"):
        pairs(500, f"another text\n{query}\n")
