"""The choice of texts for a batch: within its budget, with little padding."""

import numpy as np
import pytest

from embedding_api.engine.backends.layout import Packing, Padding
from embedding_api.engine.scheduling.cost import Cost, choose_companions
from tests.fakes import FakeBackend

COST = Cost(start_s=3e-3, token_s=1e-4)


def with_layout(layout):
    backend = FakeBackend()
    backend.n_computed = layout.n_computed
    return backend


PADDED, PACKED = with_layout(Padding(0)), with_layout(Packing(0, 0))


@pytest.mark.parametrize("backend", [PADDED, PACKED])
@pytest.mark.parametrize("budget", [1, 64, 512, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_a_batch_keeps_to_its_budget_and_takes_no_text_twice(seed, budget, backend):
    first, *others = np.random.default_rng(seed).integers(1, 257, size=200).tolist()
    chosen = choose_companions(first, others, backend, COST, budget)
    assert len(chosen) == len(set(chosen))
    lengths = [first, *(others[position] for position in chosen)]
    assert backend.n_computed(len(lengths), max(lengths), sum(lengths)) <= budget or len(lengths) == 1


def test_padded_texts_keep_to_their_like_unless_a_start_is_dear():
    lengths = [10, 100, 11, 9, 90]
    assert sorted(choose_companions(10, lengths, PADDED, Cost(start_s=2e-3, token_s=1e-4), 1000)) == [0, 2, 3]
    assert sorted(choose_companions(10, lengths, PADDED, Cost(start_s=1.0, token_s=1e-6), 1000)) == [0, 1, 2, 3, 4]
    assert choose_companions(10, [100], PADDED, Cost(start_s=1e-6, token_s=1.0), 1000) == []


def test_packs_are_filled_in_order_whatever_the_lengths():
    assert choose_companions(100, [60, 40, 200, 30, 26], PACKED, COST, 256) == [0, 1, 3, 4]
    assert choose_companions(10, [90, 80, 70, 60, 10], PACKED, COST, 192) == [0, 1, 4]


def test_a_pack_leaves_out_what_would_leave_more_of_it_empty():
    """Given 129 tokens, which a pack computes as 160, then the last text stays out."""
    assert choose_companions(120, [8, 1], PACKED, Cost(start_s=0.0, token_s=1e-4), 256) == [0]


def test_of_equal_ones_the_first_are_taken():
    assert choose_companions(16, [16] * 9, PADDED, COST, 64) == [0, 1, 2]


def test_nobody_is_there():
    assert choose_companions(16, [], PADDED, COST, 64) == []
