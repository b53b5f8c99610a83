"""Workers that a plain process forks. tests/model tests them with a real model."""

import os
import signal
import time

import numpy as np
import pytest

from embedding_api.engine.work import Lane
from embedding_api.engine.workers.exchange import Exchange
from embedding_api.engine.workers.forked import ForkedWorkers
from embedding_api.engine.workers.setup import Setup
from embedding_api.request import Caller
from tests.conftest import until
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
    with ForkedWorkers(setup, 3) as workers:
        np.testing.assert_array_equal(workers.runner.compute(Lane(0, 0), TEXTS, Caller()).values, VECTORS)
        assert 0 < sum(map(len, setup.backends[0].batches)) < len(TEXTS)
        first, second = workers.pids
        os.kill(first, signal.SIGKILL)
        np.testing.assert_array_equal(workers.runner.compute(Lane(0, 0), TEXTS, Caller()).values, VECTORS)
        until(lambda: workers.pids == [second], deadline_s=10)
    assert workers.pids == []
    assert not any(setup.exchange.board.columns.is_taken)
    setup.exchange.close()


def test_a_process_that_cannot_fork_safely_is_refused():
    alone = Setup(["m"], [FakeBackend()], [COST])
    with pytest.raises(RuntimeError, match="need an exchange"), ForkedWorkers(alone, 2):
        pass


def test_a_backend_that_cannot_be_prepared_leaves_no_process_behind(no_leaked_threads):
    class Broken(FakeBackend):
        def prepare(self):
            raise RuntimeError("no device")

    setup = Setup(["m"], [Broken()], [COST], Exchange(4), n_computing=3)
    workers = ForkedWorkers(setup, 3)
    with pytest.raises(RuntimeError, match="no device"), workers:
        pass
    assert workers.pids == []
    setup.exchange.close()
