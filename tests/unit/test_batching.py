"""Batches hold every text once, are sorted, and keep to their budget."""

import numpy as np
import pytest

from embedding_api.engine.batching import cut


@pytest.mark.parametrize("budget", [1, 64, 512, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_every_text_is_in_one_batch_within_the_budget(seed, budget):
    lengths = np.random.default_rng(seed).integers(1, 257, size=200).tolist()
    batches = cut(lengths, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    for rows in batches:
        longest = max(lengths[row] for row in rows)
        assert len(rows) * longest <= budget or len(rows) == 1


def test_longest_come_first_and_equal_ones_keep_their_order():
    assert [rows.tolist() for rows in cut([2, 8, 2, 8], 16)] == [[1, 3], [0, 2]]


def test_sorting_wastes_less_than_arrival_order():
    lengths = [1, 100] * 50
    padded = sum(len(rows) * max(lengths[row] for row in rows) for rows in cut(lengths, 400))
    assert padded < 1.1 * sum(lengths)


def test_nothing_gives_no_batch():
    assert cut([], 512) == []
