"""Jobs run in order on threads that start when needed. Urgent jobs overtake them, on threads that are left free."""

import functools
import threading

import pytest

from embedding_api.errors import StartError
from embedding_api.server.pool import N_FIRST_THREADS, N_SPARE_THREADS, Pool
from tests import conftest

until = functools.partial(conftest.until, deadline_s=10)


class Jobs:
    """Jobs that run until `may_end` is set."""

    def __init__(self):
        self.begun = []
        self.may_end = threading.Event()

    def run(self, name):
        self.begun.append(name)
        assert self.may_end.wait(30)
        if name == "bad":
            raise RuntimeError("a bug")


@pytest.fixture
def jobs():
    return Jobs()


@pytest.fixture
def pool(jobs, no_leaked_threads):
    pool = Pool(2, jobs.run)
    yield pool
    jobs.may_end.set()
    pool.close()


def test_jobs_wait_for_a_thread_and_urgent_ones_use_the_spare_threads(pool, jobs):
    pool.start()
    for name in "abc":
        pool.submit(name, is_urgent=False)
    until(lambda: sorted(jobs.begun) == ["a", "b"])
    assert list(pool.waiting) == ["c"]
    for number in range(N_SPARE_THREADS + 1):
        pool.submit(number, is_urgent=True)
    until(lambda: len(jobs.begun) == 2 + N_SPARE_THREADS)
    assert pool.n_running == 2 + N_SPARE_THREADS
    jobs.may_end.set()
    for _ in range(2 + N_SPARE_THREADS):
        pool.finished()
    until(lambda: jobs.begun[-2:] == [N_SPARE_THREADS, "c"])
    assert not pool.waiting


def test_a_job_that_raises_costs_no_thread(pool, jobs, caplog):
    pool.start()
    jobs.may_end.set()
    for number in range(5):
        pool.submit("bad", is_urgent=False)
        until(lambda n=number: len(caplog.records) == n + 1)
        pool.finished()
    pool.submit("good", is_urgent=False)
    until(lambda: jobs.begun == ["bad"] * 5 + ["good"])


@pytest.fixture
def refuse_threads(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    return lambda patches=monkeypatch: patches.setattr(threading.Thread, "start", refuse)


def test_where_no_thread_can_be_had_jobs_wait_for_those_that_there_are(pool, jobs, caplog, monkeypatch, refuse_threads):
    pool.start()
    with monkeypatch.context() as patches:
        refuse_threads(patches)
        for name in "abc":
            pool.submit(name, is_urgent=False)
        until(lambda: jobs.begun == ["a"])
        pool.submit("health", is_urgent=True)
        until(lambda: jobs.begun == ["a", "health"])
        assert list(pool.waiting) == ["b", "c"]
        assert [record.getMessage() for record in caplog.records] == [
            f"requests wait for {N_FIRST_THREADS} threads, and no more can be had: can't start new thread"
        ]
        jobs.may_end.set()
        for _ in range(2):
            pool.finished()
        until(lambda: jobs.begun[2:] == ["b"])
        pool.finished()
        until(lambda: jobs.begun[3:] == ["c"])


def test_a_worker_without_its_first_threads_cannot_start(jobs, refuse_threads):
    refuse_threads()
    with pytest.raises(StartError, match="the system refuses thread 1 of those that a worker needs; raise the limit"):
        Pool(2, jobs.run).start()
