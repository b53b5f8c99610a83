"""How many threads compute a text that waits alone. The measurement forks real processes."""

import os
import threading
import time

import pytest

from embedding_api.engine.models import alone
from embedding_api.settings import load_settings
from tests.fakes import FakeBackend


class Scaling(FakeBackend):
    """A backend that takes so many milliseconds for a text, by its threads."""

    def __init__(self, ms_by_threads):
        super().__init__()
        self._ms_by_threads = ms_by_threads

    def compute(self, inputs, n_prompt_tokens):
        time.sleep(self._ms_by_threads[self.n_threads] / 1000)
        return super().compute(inputs, n_prompt_tokens)


@pytest.mark.parametrize(
    ("ms_by_threads", "n_cores", "expected"),
    [
        ({1: 8, 2: 5, 4: 3, 8: 2}, 8, 8),
        ({1: 8, 2: 5, 4: 7, 8: 2}, 8, 2),
        ({1: 8, 2: 5, 4: 3, 6: 2}, 6, 6),
        ({1: 8, 2: 9}, 2, 2),
    ],
)
def test_the_number_of_threads_is_doubled_as_long_as_it_helps(ms_by_threads, n_cores, expected):
    backend = Scaling(ms_by_threads)
    n_threads_before = threading.active_count()
    assert alone.measure({backend: "m"}, {backend: 64}, n_cores).n_threads == expected
    assert threading.active_count() == n_threads_before
    assert backend.batches == []


def test_the_times_are_logged_by_tokens(caplog):
    backend = Scaling({1: 4, 2: 2})
    with caplog.at_level("INFO"):
        alone.measure({backend: "m"}, {backend: None}, 2)
    (fields,) = [record.fields for record in caplog.records]
    assert (fields["model"], fields["threads"]) == ("m", 2)
    assert list(fields["ms_by_tokens"]) == ["16", "128", "512"]
    assert all(ms >= 2 for ms in fields["ms_by_tokens"].values())


@pytest.mark.parametrize(
    ("saved_ms", "tokens"), [({16: 16, 64: 20}, 10), ({16: 5, 64: 15}, 40), ({16: 0, 64: 5}, float("inf"))]
)
def test_a_text_is_worth_the_way_to_another_worker_if_it_saves_more(saved_ms, tokens, monkeypatch):
    """Given a way of 10 ms, then a text is worth it from the tokens on at which more threads save 10 ms."""
    monkeypatch.setattr(alone, "_WAY_S", 0.01)
    backend = Scaling({})
    backend.compute = lambda inputs, _: time.sleep((25 - (backend.n_threads > 1) * saved_ms[len(inputs[0])]) / 1000)
    (worth,) = alone.measure({backend: "m"}, {backend: 64}, 2).worth_tokens
    assert worth == pytest.approx(tokens, abs=6)


@pytest.mark.parametrize(
    ("n_cores", "workers", "expected"),
    [(1, 1, (1, 1)), (1, 2, (1, 1)), (2, 1, (2, 2)), (2, 2, (1, 1)), (2, 3, (1, 2)), (8, 9, (1, 8)), (8, 2, (4, 4))],
)
def test_a_text_alone_takes_all_cores_where_there_is_a_worker_to_spare(n_cores, workers, expected, monkeypatch):
    monkeypatch.setattr("embedding_api.machine.cores.count", lambda: n_cores)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("WORKERS", str(workers))
    assert alone.Threads.of(load_settings()) == expected


def test_a_length_that_would_take_long_is_left_out(caplog, monkeypatch):
    monkeypatch.setattr(alone, "_LONGEST_S", 0.05)
    backend = Scaling({})
    backend.compute = lambda inputs, _: time.sleep(len(inputs[0]) / 10_000)
    with caplog.at_level("INFO"):
        alone.measure({backend: "m"}, {backend: 8192}, 2)
    assert list(caplog.records[0].fields["ms_by_tokens"]) == ["16", "128"]


def test_one_thread_is_measured_without_a_fork(caplog):
    backend = FakeBackend()
    with caplog.at_level("INFO"):
        assert alone.measure({backend: "m"}, {backend: 64}, 1) == alone.NOT_MEASURED
    assert set(map(len, backend.batches)) == {1}
    assert caplog.records[0].fields["threads"] == 1


class Dying(FakeBackend):
    def compute(self, inputs, n_prompt_tokens):
        os._exit(3)


class Hanging(FakeBackend):
    def compute(self, inputs, n_prompt_tokens):
        time.sleep(60)


@pytest.mark.parametrize("backend", [Dying(), Hanging()])
def test_a_measurement_that_fails_leaves_one_core(backend, monkeypatch, caplog):
    monkeypatch.setattr(alone, "_TIMEOUT_S", 0.5)
    assert alone.measure({backend: "m"}, {backend: 64}, 2) == alone.NOT_MEASURED
    assert caplog.messages == ["one text is computed on one core, because a measurement of several failed"]
