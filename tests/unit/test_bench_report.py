"""The bench's arithmetic: rounds to rows, rows to ratios and targets, and the tables that show them."""

import dataclasses
import json

import pytest

from bench import outcome, packs, report, spread, targets, workloads
from bench.contestants import Contestant, Round
from bench.interference import Interference
from bench.large import N_ENCODER_WEIGHTS, Footprint
from bench.large import outcomes as large_outcomes
from bench.lone import Lone
from bench.measure import Figures, Pace, Row, figures, measure, percentile
from bench.quality import Quality
from bench.spread import Spread
from bench.texts import Shelf
from bench.workloads import ONNX_RUNTIME


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


def row(workload, contestant: str, *rounds: Figures) -> Row:
    first = rounds[0]
    return Row(
        workload.name, contestant, "", workload.n_connections, first.texts_per_s, first.texts_per_s, 1,
        first.p50_ms, first.p99_ms, 100, 0.1, list(rounds),
    )  # fmt: skip


def rates(*texts_per_s: float) -> list[Figures]:
    """Return rounds of which only the rates differ. The client takes a tenth of the time."""
    return [Figures(rate, rate / 0.9, 1.0, 2.0) for rate in texts_per_s]


def latencies(*p50s_ms: float, p99_ms: float = 10) -> list[Figures]:
    return [Figures(1000 / p50_ms, 1000 / p50_ms, p50_ms, p99_ms) for p50_ms in p50s_ms]


def judged(outcomes, *words: str) -> outcome.Outcome:
    """Return the only outcome whose target has all of the words."""
    (found,) = [each for each in outcomes if all(word in each.target for word in words)]
    return found


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

    assert [each.n_requests for each in rows] == [2 * 2, 2 * 10]
    for theirs, ours in zip(slow.asked[1:], fast.asked[1:], strict=True):
        assert ours[: len(theirs)] == theirs
    texts = [text for request in fast.asked for (text,) in request]
    assert len(set(texts)) == len(texts)
    assert rows[0].client_ms == pytest.approx(0.1)


def test_a_contestant_that_fails_in_a_round_is_left_out_and_the_others_go_on():
    failing, good = Clockwork("", 0.1), Clockwork("", 0.1)
    left_out: dict[str, str] = {}

    def n_tokens(texts):
        failing.fault = "it crashed"  # tokens are counted between the heat and the first round
        return len(texts)

    field = [Contestant("Flask", [failing]), Contestant("service int8", [good])]
    rows = measure(workloads.ONE, field, Shelf(), n_tokens, Pace(n_rounds=2, heat_s=0), left_out)

    assert [each.contestant for each in rows] == ["service int8"]
    assert left_out == {f"Flask in {workloads.ONE.name}": "it crashed"}


def test_the_client_s_time_is_subtracted_from_that_of_all_cores():
    found = figures(Round(elapsed_s=10, latencies_s=[0.1] * 100, n_requests=100, client_cpu_s=4), 2, n_cores=2)

    assert found.texts_per_s == pytest.approx(20)
    assert found.net_texts_per_s == pytest.approx(200 / 8)
    assert found.p50_ms == found.p99_ms == pytest.approx(100)


def test_a_latency_is_judged_by_the_median_of_the_rounds_ratios():
    rows = [
        row(workloads.ONE, ONNX_RUNTIME, *latencies(2, 4, 2)),
        row(workloads.ONE, "service float32", *latencies(2.4, 4, 3)),  # ratios 1.2, 1, 1.5
        row(workloads.ONE, "service int8", *latencies(1.6, 2, 2)),  # ratios 0.8, 0.5, 1
    ]
    found = targets.outcomes(rows)
    float32, bfloat16, int8 = (judged(found, workloads.ONE.name, name) for name in ("float32", "bfloat16", "int8"))

    assert (float32.measured, float32.met) == ("1.20 (1.00 to 1.50)", True)
    assert (bfloat16.measured, bfloat16.met) == ("not measured", None)
    assert (int8.measured, int8.met) == ("0.80 (0.50 to 1.00)", False)


def test_a_rate_is_judged_as_it_is_against_onnx_runtime_and_without_the_client_against_full_packs():
    rows = [
        row(workloads.ONE_X_8, ONNX_RUNTIME, *rates(100)),
        row(workloads.ONE_X_8, "service bfloat16", *rates(170)),
        row(workloads.ONE_X_32, "full packs bfloat16", Figures(1000, 1000, None, None)),
        row(workloads.ONE_X_32, "service bfloat16", *rates(630)),
    ]
    found = targets.outcomes(rows)

    assert judged(found, workloads.ONE_X_8.name, "bfloat16").met is True
    packs = judged(found, workloads.ONE_X_32.name, "against full packs bfloat16")
    assert (packs.measured, packs.met) == ("0.70 (0.70 to 0.70)", True)


def test_the_tail_is_p99_over_p50_with_32_connections():
    rows = [row(workloads.ONE_X_32, "service int8", *latencies(10, 10, 10, p99_ms=17))]

    assert judged(targets.outcomes(rows), "int8", "p99 over p50").met is False


def test_p50_is_in_units_of_the_time_of_full_packs():
    ours = row(workloads.ONE_X_32, "service int8", *latencies(64))
    full = row(workloads.ONE_X_32, "full packs int8", *rates(1000))  # 32 texts take 32 ms

    assert targets.p50_of_packs(ours, full) == [pytest.approx(2)]
    assert judged(targets.outcomes([ours, full]), "int8", "p50 over").met is True
    assert targets.p50_of_packs(ours, None) == []


def test_a_lone_text_and_a_spread_are_judged_round_by_round():
    (lone,) = targets.lone_text([Lone("float32", [55, 60, 70], [100, 100, 100])])
    (uneven,) = targets.spread([Spread("service int8", [90, 96, 99], [100, 100, 100])])

    assert (lone.measured, lone.met) == ("0.60 (0.55 to 0.70)", True)
    assert (uneven.measured, uneven.met) == ("0.96 (0.90 to 0.99)", True)


def test_int8_is_to_keep_the_neighbours():
    found = [Quality("service float32", 9, 0.7, 1, 1), Quality("service int8", 9, 0.7, 1, 0.949)]

    assert [each.met for each in targets.quality(found)] == [False]


def test_short_texts_may_wait_for_two_full_windows_beside_bulk_work():
    measured = Interference("service int8", "", 4, 5, 20, 25.0, long_ms=10, n_loaded=300, bulk_texts_per_s=90)
    later = dataclasses.replace(measured, loaded_p99_ms=25.1)

    assert [each.met for each in targets.beside_bulk([measured, later])] == [True, False]


def test_private_memory_is_judged_by_the_largest_worker():
    (found,) = targets.private_memory({"service float32": [39.0, 40.4], "full packs float32": [400.0]})

    assert (found.measured, found.met) == ("39 and 40 MB", False)


def test_the_encoder_of_the_large_model_has_303_million_weights_less_its_embeddings():
    assert pytest.approx(303e6, rel=0.01) == N_ENCODER_WEIGHTS
    met = large_outcomes("bfloat16", Footprint([15.0, 16.0], 700.0, 900.0), 1100.0)

    assert [each.met for each in met] == [True, True, True]
    assert [each.met for each in large_outcomes("bfloat16", Footprint([81.0], 800.0, 1200.0), 1100.0)] == [False] * 3


def test_a_text_goes_into_the_first_pack_with_room():
    assert packs.packs([200, 100, 50, 156, 7, 300, 6]) == [[0, 2, 6], [1, 3], [4], [5]]


def test_connections_are_chosen_by_the_workers_that_own_them():
    owners = [7, 8, 7, 7, 8, 7, 0, 7]

    assert spread.choose(owners, (4, 1)) == {0, 2, 3, 5, 1}
    assert spread.choose(owners, (3, 2)) == {0, 2, 3, 1, 4}
    assert spread.choose(owners, (4, 3)) is None
    assert spread.choose([7, 7], (1, 1)) is None


def test_a_report_holds_what_was_measured_and_only_that():
    rows = [row(workloads.ONE, ONNX_RUNTIME, *latencies(2)), row(workloads.ONE, "service float32", *latencies(6))]
    results = report.Results({"commit": "abc", "machine": "some"}, Pace(), rows)
    results.left_out["TEI"] = "it is not on the PATH"
    text = report.markdown(results)

    assert "| 3.00 (3.00 to 3.00) " in text
    assert "- TEI: it is not on the PATH" in text
    assert "Quality" not in text
    assert "bulk" not in text


def test_every_part_has_its_table():
    results = report.Results({"commit": "abc"}, Pace())
    results.spreads = [Spread("service int8", [90.0], [100.0])]
    results.lone_texts = [Lone("float32", [500.0], [1000.0])]
    results.qualities = [Quality("service int8", 2000, 0.75, 0.998, 0.937)]
    results.interferences = [Interference("service int8", "", 4, 5, 20, 25.0, 10, 300, 90)]
    text = report.markdown(results)

    assert "| service int8 | 90.0                     | 100                       | 0.90 (0.90 to 0.90) |" in text
    assert "| float32   | 500               | 1000                | 0.50 (0.50 to 0.50) |" in text
    assert "| service int8 | 2000  | 0.7500 | 99.80 %      | 93.7 %                    |" in text
    assert "| service int8 | 4.00, 5.00       |" in text


def test_a_written_run_holds_the_figures_of_each_round(tmp_path):
    path = tmp_path / "run.json"
    report.write_data(report.Results({}, Pace(), [row(workloads.ONE, "Flask", *latencies(2, 4))]), path)
    (found,) = json.loads(path.read_text())["rows"]

    assert [each["p50_ms"] for each in found["rounds"]] == [2, 4]
