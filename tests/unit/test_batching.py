"""Batches hold every text once, keep to their budget, and cost the least that is possible."""

import itertools

import numpy as np
import pytest

from embedding_api.engine.backends.layout import Packing
from embedding_api.engine.batching import cut
from embedding_api.engine.cost import Cost, measure
from tests.fakes import FakeBackend

COST = Cost(start_s=3e-3, token_s=1e-4)


def batches(lengths, ends):
    return [lengths[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def seconds(cost, lengths, ends):
    return sum(cost.start_s + cost.token_s * len(batch) * batch[0] for batch in batches(lengths, ends))


@pytest.mark.parametrize("budget", [1, 64, 512, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_every_text_is_in_one_batch_within_the_budget(seed, budget):
    lengths = sorted(np.random.default_rng(seed).integers(1, 257, size=200).tolist(), reverse=True)
    made = batches(lengths, cut(lengths, FakeBackend(), COST, budget))
    assert list(itertools.chain(*made)) == lengths
    assert all(len(batch) * batch[0] <= budget or len(batch) == 1 for batch in made)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cut_costs_less(seed):
    random = np.random.default_rng(seed)
    lengths = sorted(random.integers(1, 100, size=9).tolist(), reverse=True)
    cost = Cost(start_s=float(random.integers(0, 50)), token_s=1.0)
    every_cut = ([*inner, 9] for n_cuts in range(9) for inner in itertools.combinations(range(1, 9), n_cuts))
    allowed = [
        ends
        for ends in every_cut
        if all(len(batch) * batch[0] <= 200 or len(batch) == 1 for batch in batches(lengths, ends))
    ]
    least = min(seconds(cost, lengths, ends) for ends in allowed)
    assert seconds(cost, lengths, cut(lengths, FakeBackend(), cost, 200)) == pytest.approx(least)


def test_a_dear_start_brings_texts_together_and_a_cheap_one_parts_them():
    lengths = [100, 10, 10, 10]
    assert cut(lengths, FakeBackend(), Cost(start_s=1.0, token_s=1e-6), 1000) == [4]
    assert cut(lengths, FakeBackend(), Cost(start_s=1e-6, token_s=1.0), 1000) == [1, 4]


def test_packs_are_filled_whatever_the_lengths():
    """Given a backend that packs, then texts of different lengths share a batch, and none is over the budget."""
    backend = FakeBackend()
    backend.n_computed = Packing(0, 0).n_computed
    assert cut([100, 60, 40, 30, 20], backend, COST, 256) == [5]
    assert cut([256, 200, 56], backend, COST, 256) == [1, 3]
    assert cut([300, 20], backend, COST, 256) == [1, 2]


def test_nothing_gives_no_batch():
    assert cut([], FakeBackend(), COST, 512) == []


def test_a_cost_is_measured_from_the_backend(monkeypatch):
    """Given a clock that a batch moves by 2 s and 0.01 s a padded token, then the cost says so."""
    clock = [0.0]
    monkeypatch.setattr("embedding_api.engine.cost.time.perf_counter", lambda: clock[0])

    class Timed(FakeBackend):
        def embed(self, batch, n_prompt_tokens):
            clock[0] += 2.0 + 0.01 * len(batch) * max(map(len, batch))
            return super().embed(batch, n_prompt_tokens)

    assert measure(Timed()) == pytest.approx((2.0, 0.01))
