"""The bench's arithmetic: rounds to rows, rows to ratios and targets, and the tables that show them."""

import dataclasses

import pytest

from bench import bare, report, targets, workloads
from bench.contestants import PEER, Contestant, Round
from bench.interference import Interference
from bench.large import N_ENCODER_WEIGHTS, Footprint
from bench.large import outcomes as large_outcomes
from bench.measure import Pace, Row, measure, percentile
from bench.texts import Shelf


class Clockwork:
    """A variant that takes a fixed time for each request, and records the requests."""

    def __init__(self, settings: str, request_s: float, fault: str = "") -> None:
        self.settings, self.request_s, self.fault = settings, request_s, fault
        self.asked: list[list[list[str]]] = []

    def run(self, requests, n_connections):
        if self.fault:
            raise RuntimeError(self.fault)
        self.asked.append(list(requests))
        elapsed_s = self.request_s * len(requests)
        return Round(elapsed_s, [self.request_s] * len(requests), len(requests), 0.0001 * len(requests))


def row(workload, contestant: str, *texts_per_s: float) -> Row:
    return Row(
        workload.name, contestant, "", 1, 1, texts_per_s[0], 1, list(texts_per_s), 1.0, 2.0, 100, 0.1
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 99, None), ([5], 99, 5), (range(1, 101), 99, 99), (range(1, 101), 50, 50), (range(1, 12), 50, 6)],
)
def test_a_percentile_is_one_of_the_values(values, percent, expected):
    assert percentile(list(values), percent) == expected


def test_the_fastest_variant_that_works_stands_for_its_contestant():
    variants = [Clockwork("slow", 0.1), Clockwork("broken", 0.001, fault="Already borrowed"), Clockwork("fast", 0.01)]
    left_out: dict[str, str] = {}
    rows = measure(workloads.ONE, [Contestant("Flask", variants)], Shelf(), len, Pace(), left_out)

    assert [(each.settings, each.texts_per_s) for each in rows] == [("fast", pytest.approx(100))]
    assert list(left_out.values()) == ["Already borrowed"]


def test_all_contestants_answer_the_same_new_texts_each_as_many_as_fill_the_time():
    slow, fast = Clockwork("", 0.5), Clockwork("", 0.1)
    field = [Contestant("Flask", [slow]), Contestant("service float32", [fast])]
    rows = measure(workloads.ONE, field, Shelf(), len, Pace(n_rounds=2, heat_s=0), {})

    assert [each.n_requests for each in rows] == [2 * 3, 2 * 15]
    for theirs, ours in zip(slow.asked[1:], fast.asked[1:], strict=True):
        assert ours[: len(theirs)] == theirs
    texts = [text for request in fast.asked for (text,) in request]
    assert len(set(texts)) == len(texts)
    assert rows[0].client_ms == pytest.approx(0.1)


def test_a_target_is_met_or_not_by_the_median_of_the_rounds_ratios():
    rows = [
        row(workloads.ONE, PEER, 10, 20, 10),
        row(workloads.ONE, "service float32", 26, 40, 30),  # ratios 2.6, 2, 3
        row(workloads.ONE, "service int8", 40, 40, 40),  # ratios 4, 2, 4
    ]
    first, second, third, *_ = targets.outcomes(rows, [])

    assert (first.measured, first.met) == ("2.60x (2.00x to 3.00x)", True)
    assert (second.measured, second.met) == ("not measured", None)
    assert (third.measured, third.met) == ("4.00x (2.00x to 4.00x)", False)


def test_short_texts_may_wait_for_two_full_windows_beside_bulk_work():
    measured = Interference("service int8", "", 4, 5, 20, 25.0, long_ms=10, n_loaded=300, bulk_texts_per_s=90)
    later = dataclasses.replace(measured, loaded_p99_ms=25.1)

    assert [each.met for each in targets.outcomes([], [measured])][-1] is True
    assert [each.met for each in targets.outcomes([], [later])][-1] is False


def test_private_memory_is_judged_by_the_largest_worker():
    (outcome,) = targets.private_memory({"service float32": [39.0, 40.4], "bare float32": [400.0]})

    assert (outcome.measured, outcome.met) == ("39 and 40 MB", False)


def test_the_encoder_of_the_large_model_has_303_million_weights_less_its_embeddings():
    assert pytest.approx(303e6, rel=0.01) == N_ENCODER_WEIGHTS
    met = large_outcomes("bfloat16", Footprint([15.0, 16.0], 700.0, 900.0), 1100.0)

    assert [each.met for each in met] == [True, True, True]
    assert [each.met for each in large_outcomes("bfloat16", Footprint([81.0], 800.0, 1200.0), 1100.0)] == [False] * 3


def test_bare_batches_are_sorted_and_within_their_budget():
    lengths = [3, 200, 16, 16, 16, 40]
    cut = bare.batches(lengths, 64)

    assert cut == [[1], [5], [2, 3, 4, 0]]


def test_a_report_holds_what_was_measured_and_only_that():
    rows = [row(workloads.ONE, PEER, 10), row(workloads.ONE, "service float32", 30)]
    results = report.Results({"commit": "abc", "machine": "some"}, Pace(), rows)
    results.left_out["infinity optimum"] = "it cannot be installed"
    text = report.markdown(results)

    assert "| 3.00 (3.00 to 3.00) " in text
    assert "- infinity optimum: it cannot be installed" in text
    assert "Copies" not in text
    assert "bulk" not in text


def test_a_written_run_can_be_read_again(tmp_path):
    rows = [row(workloads.ONE, PEER, 10), row(workloads.ONE_X_32, PEER, 30)]
    path = tmp_path / "run.json"
    report.write_data(report.Results({}, Pace(), rows), path)

    assert report.load(path) == rows


def test_copies_stand_apart_in_a_request():
    request = workloads.COPIES.request(Shelf())

    assert len(request) == workloads.COPIES.n_texts == 32
    assert request[:8] * 4 == request
    assert len(set(request)) == 8


def test_the_plot_is_drawn_of_what_there_is(tmp_path):
    plot = pytest.importorskip("bench.plot")
    rows = [dataclasses.replace(row(each, "Flask", 10), n_connections=each.n_connections) for each in workloads.SHORT]
    plot.draw(rows, "some machine", tmp_path / "picture.png")

    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
