"""The arithmetic of `bench pairs`: ratios of medians, their interval, and when pairs end."""

import itertools

import pytest

from bench import pairs
from bench.pairs import Comparison, Run, compare, estimate
from bench.texts import Shelf
from bench.workloads import ONE, ONE_X_32


class Clockwork:
    """A side with known runs. It records the order in which sides ran, and their requests."""

    def __init__(self, name, order, rates, cpu_ms=1.0):
        self.name, self.order, self.rates, self.cpu_ms, self.asked = name, order, itertools.cycle(rates), cpu_ms, []

    def run(self, requests, n_connections):
        self.order.append(self.name)
        self.asked.append((list(requests), n_connections))
        return Run(next(self.rates), self.cpu_ms)


def sides(before, after):
    order = []
    return order, Clockwork("before", order, before), Clockwork("after", order, after, cpu_ms=0.5)


def test_a_ratio_is_after_over_before_pair_by_pair():
    before, after = [Run(100, 4), Run(50, 4), Run(10, 2)], [Run(110, 2), Run(60, 1), Run(9, 2)]
    comparison = Comparison("w", before, after)
    assert comparison.rate.median == pytest.approx(1.1)  # median of 1.1, 1.2 and 0.9
    assert comparison.cpu.median == pytest.approx(0.5)  # median of 0.5, 0.25 and 1
    assert comparison.row()[:4] == ["w", "3", "50.0", "60.0"]
    assert comparison.row()[5:7] == ["4.00", "2.00"]


def test_an_interval_holds_the_median_and_narrows_with_more_pairs():
    ratios = [1 + (n * 7 % 11 - 5) / 50 for n in range(11)]
    few, many = estimate(ratios), estimate(ratios * 10)
    for each in (few, many):
        assert each.median == pytest.approx(1)
        assert each.low <= each.median <= each.high
    assert 0 < many.high - many.low < few.high - few.low
    assert few == estimate(ratios)
    assert estimate([2.0] * 5) == (2, 2, 2)


def test_the_interval_covers_the_true_median_about_as_often_as_it_says():
    generator = pairs.np.random.default_rng(1)
    intervals = [estimate(generator.normal(1, 0.1, 30).tolist()) for _ in range(200)]
    assert 0.88 <= sum(each.low <= 1 <= each.high for each in intervals) / 200 <= 1


def test_both_sides_get_the_same_new_texts_and_take_turns_in_beginning():
    order, before, after = sides([10], [20])
    compare(ONE_X_32, before, after, Shelf(), n_least=4, n_most=4)
    assert order == ["before", "after"] + ["before", "after", "after", "before"] * 2
    assert before.asked[1:] == after.asked[1:]
    assert {n_connections for _, n_connections in before.asked} == {32}
    texts = [text for requests, _ in before.asked[1:] for (text,) in requests]
    assert len(set(texts)) == len(texts)


def test_a_run_gets_more_requests_than_the_faster_side_answers_in_its_time():
    _, before, after = sides([10], [40])
    compare(ONE, before, after, Shelf(), n_least=1, n_most=1)
    assert len(before.asked[-1][0]) == len(after.asked[-1][0]) == round(1.3 * 3 * 40)


@pytest.mark.parametrize(
    ("rates", "n_pairs"),
    [
        pytest.param([10], 30, id="steady: the least"),
        # One half of the ratios is 0.8 and the other 1.2, so the interval of their median stays wide.
        pytest.param([8, 12], 120, id="unsteady: the most"),
    ],
)
def test_pairs_go_on_until_the_interval_is_narrow_or_there_are_too_many(rates, n_pairs):
    _, before, after = sides([10], rates)
    assert len(compare(ONE, before, after, Shelf()).before) == n_pairs


def test_pairs_end_once_both_intervals_are_narrow():
    _, before, after = sides([10], [9.3, 9.5, 9.7, 9.9, 10.1, 10.3, 10.5, 10.7])
    comparison = compare(ONE, before, after, Shelf())
    assert 30 < len(comparison.before) < 120
    assert comparison.is_precise()
    assert not Comparison("one less", comparison.before[:-1], comparison.after[:-1]).is_precise()
