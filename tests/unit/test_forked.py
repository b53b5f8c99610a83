"""Workers that a plain process forks. tests/model tests them with a real model."""

import os
import signal
import time

import numpy as np
import psutil
import pytest

from embedding_api.engine.work import Lane
from embedding_api.engine.workers.exchange import Exchange
from embedding_api.engine.workers.forked import ForkedWorkers
from embedding_api.engine.workers.setup import Setup
from embedding_api.request import Caller
from embedding_api.telemetry.metrics import counters
from tests.conftest import samples, until
from tests.fakes import COST, FakeBackend, vector

TEXTS = [np.array([n, 2, 3], dtype=np.int64) for n in range(400)]
VECTORS = np.stack([vector(ids) for ids in TEXTS])


class Slow(FakeBackend):
    """A backend whose batches last long enough for another process to fetch one."""

    def compute(self, inputs, n_prompt_tokens):
        time.sleep(0.005)
        return super().compute(inputs, n_prompt_tokens)


@pytest.fixture
def setup(no_leaked_threads):
    return Setup(["m"], [Slow()], [COST], Exchange(4), n_computing=3)


def test_all_workers_compute_and_the_death_of_one_loses_no_text(setup):
    n_batches, labels = samples(counters), {"model": "m"}
    n_before = n_batches("embeddings_batch_texts_count", labels) or 0
    with ForkedWorkers(setup, 3) as workers:
        np.testing.assert_array_equal(workers.runner.compute(Lane(0, 0), TEXTS, Caller()).values, VECTORS)
        assert 0 < sum(map(len, setup.backends[0].batches)) < len(TEXTS)
        first, second = workers.pids
        os.kill(first, signal.SIGKILL)
        np.testing.assert_array_equal(workers.runner.compute(Lane(0, 0), TEXTS, Caller()).values, VECTORS)
        until(lambda: workers.pids == [second], deadline_s=10)
    assert workers.pids == []
    assert not any(setup.exchange.board.columns.is_taken)
    # Each process counts its own batches: two that count in one memory would lose some.
    assert n_batches("embeddings_batch_texts_count", labels) - n_before == len(setup.backends[0].batches)
    setup.exchange.close()


def test_a_process_that_cannot_fork_safely_is_refused():
    alone = Setup(["m"], [FakeBackend()], [COST])
    with pytest.raises(RuntimeError, match="need an exchange"), ForkedWorkers(alone, 2):
        pass


def test_a_backend_that_cannot_be_prepared_leaves_no_process_behind(no_leaked_threads):
    class Broken(FakeBackend):
        def prepare(self, n_threads):
            raise RuntimeError("no device")

    setup = Setup(["m"], [Broken()], [COST], Exchange(4), n_computing=3)
    workers = ForkedWorkers(setup, 3)
    with pytest.raises(RuntimeError, match="no device"), workers:
        pass
    assert workers.pids == []
    setup.exchange.close()


def test_a_program_that_ignores_its_children_loses_none_of_the_seats(setup):
    """Given a kernel that reaps the children itself, when a worker dies, then only its seat is free."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with ForkedWorkers(setup, 3) as workers:
            first, second = workers.pids
            os.kill(first, signal.SIGKILL)
            until(lambda: workers.pids == [second], deadline_s=10)
            assert sum(setup.exchange.board.columns.is_taken) == 2
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert not any(setup.exchange.board.columns.is_taken)
    setup.exchange.close()


def test_a_program_that_blocks_sigterm_can_end_its_workers(setup):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with ForkedWorkers(setup, 3) as workers:
            assert len(workers.pids) == 2
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    assert workers.pids == []
    setup.exchange.close()


def test_a_refused_fork_leaves_no_process_and_no_seat_behind(setup, monkeypatch):
    fork, forked = os.fork, []

    def refuse_second():
        if forked:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        forked.append(fork())
        return forked[0]

    monkeypatch.setattr(os, "fork", refuse_second)
    with pytest.raises(BlockingIOError), ForkedWorkers(setup, 3):
        pass
    assert not psutil.pid_exists(forked[0])
    assert not any(setup.exchange.board.columns.is_taken)
    setup.exchange.close()
