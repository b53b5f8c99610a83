"""The soak's verdict: which records fail it, and which do not."""

import dataclasses
from collections import Counter

import pytest

from bench import verdict
from bench.site import Visit
from bench.verdict import Counts, Course, Span

# Samples of a worker's memory without a leak, in MB, one a second.
WAVES = [30.0, 31.5, 30.2, 33.0, 30.1]


def visits(latency_s=0.05):
    return [Visit("short", at_s / 10, latency_s, 200) for at_s in range(200, 600)]


def course(**seen):
    """Return the record of a minute without faults, changed by `seen`."""
    counts = {1: Counts(31, 1), 2: Counts(35, 37), 3: Counts(35, 37)}
    steady = [(at_s, WAVES[at_s % 5]) for at_s in range(60)]
    usual = {
        "duration_s": 60,
        "middle": Span(20, 40),
        "last": Span(40, 60),
        "early": Span(20, 40),
        "late": Span(40, 60),
        "private_mb": {2: steady, 3: steady},
        "others_s": [(at_s, at_s / 10) for at_s in range(60)],
        "before": counts,
        "after": counts,
        "visits": visits(),
        "flaws": Counter(),
        "log": "INFO [1] request status=200 ms=3",
    }
    return Course(**(usual | seen))


def missed(course):
    return [outcome.target.split(":")[0] for outcome in verdict.outcomes(course) if not outcome.met]


def test_a_service_that_stays_as_it_is_passes():
    assert missed(course()) == []


@pytest.mark.parametrize(("duration_s", "kb_a_second"), [(60, 200), (1800, 4)])
def test_a_leak_of_one_worker_is_found(duration_s, kb_a_second):
    steady = [(at_s, WAVES[at_s % 5]) for at_s in range(duration_s)]
    leaking = [(at_s, mb + at_s * kb_a_second / 1024) for at_s, mb in steady]
    window_s = min(60, duration_s // 3)
    windows = {"early": Span(window_s, 2 * window_s), "late": Span(duration_s - window_s, duration_s)}
    memory = {"duration_s": duration_s, "private_mb": {2: steady, 3: leaking}}
    assert missed(dataclasses.replace(course(), **memory, **windows)) == [
        "private memory of each worker, after the warm-up"
    ]


def test_what_a_worker_takes_while_it_gets_warm_is_no_leak():
    warming = [(at_s, 10.0 + min(at_s, 20)) for at_s in range(60)]
    assert missed(course(private_mb={2: warming, 3: warming})) == []


def test_a_descriptor_or_a_thread_that_is_left_is_found():
    counts = course().before
    assert missed(course(after={**counts, 2: Counts(36, 37)})) == ["descriptors of master and workers, at rest"]
    assert missed(course(after={**counts, 3: Counts(35, 38)})) == ["threads of master and workers, at rest"]


def test_a_thread_that_a_pool_had_not_started_yet_is_none_that_is_left():
    counts = course().before
    before = {**counts, 2: Counts(35, 36)}
    assert missed(course(before=before)) == []
    assert missed(course(before=before, after={**counts, 1: Counts(31, 2)})) != []


def test_a_worker_that_was_replaced_is_found():
    assert "workers replaced" in missed(course(after={1: Counts(31, 1), 2: Counts(35, 37), 4: Counts(35, 37)}))


def test_slower_answers_are_found_unless_others_took_the_machine(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    slower = [visit._replace(latency_s=0.2) if visit.at_s >= 40 else visit for visit in visits()]
    assert missed(course(visits=slower)) == ["p99 of single short texts, last third against middle third"]
    others_s = [(at_s, max(0, at_s - 40) * 1.5) for at_s in range(60)]
    assert missed(course(visits=slower, others_s=others_s)) == []


def test_what_no_client_may_see_is_found():
    assert missed(course(flaws=Counter({"short: wrong vectors": 1}))) == ["every response as it must be"]
    assert missed(course(visits=[*visits(), Visit("batch", 50, 0.1, 500)])) == ["5xx"]
    # For clients that left before the answer, only the log has the status.
    assert missed(course(log="INFO [1] request status=504 ms=3")) == ["5xx"]


@pytest.mark.parametrize("line", ["2026-01-01 ERROR [1] request failed", "Traceback (most recent call last):"])
def test_a_complaint_in_the_log_is_found(line):
    assert missed(course(log=line)) == ["ERROR or traceback in the log"]
