"""Several workers on one exchange: batches go to other workers and come back, and none is lost with a worker."""

import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embedding_api.engine.scheduling.admission import Limits
from embedding_api.engine.work import Lane, Result, Work
from embedding_api.engine.workers.exchange import Exchange
from embedding_api.engine.workers.mailbox import Mailbox, Returned
from embedding_api.engine.workers.runner import Runner
from embedding_api.engine.workers.setup import Setup
from embedding_api.errors import ClientGoneError, DeadlineExceededError, NotReadyError, OverloadedError
from embedding_api.request import Caller
from embedding_api.telemetry.metrics import counters
from tests import conftest
from tests.fakes import COST, FakeBackend, vector

until = functools.partial(conftest.until, deadline_s=10)


def texts(n, n_tokens=8, first=1):
    """Return the token ids of `n` different texts, each int64, (n_tokens,)."""
    return [np.array([first + i, *range(2, n_tokens + 1)], dtype=np.int64) for i in range(n)]


def assert_right(ids, vectors):
    np.testing.assert_array_equal(vectors, np.stack([vector(text) for text in ids]))


class Worker:
    """The engine's part of a worker process, in threads of the test."""

    def __init__(self, exchange, backend=None, **options):
        self.backend = backend or FakeBackend()
        self.seat = exchange.board.take_seat()
        workers = Setup(["model"], [self.backend], [COST], exchange, **{"n_computing": 2, **options})
        self.runner = Runner(workers, self.seat)
        self.runner.start()
        until(lambda: self.rank >= workers.n_computing or self.is_idle)

    def compute(self, ids, caller=None):
        return self.runner.compute(Lane(0, 0), ids, caller or Caller()).values

    @property
    def rank(self):
        """How many workers are older."""
        return sum(one.generation < self.seat.address.generation for one in self.seat.board.workers())

    @property
    def is_idle(self):
        return bool(self.seat.board.columns.is_idle[self.seat.address.seat])

    @property
    def room_tokens(self):
        return self.seat.board.columns.room_tokens[self.seat.address.seat]

    @property
    def n_waiting_tokens(self):
        return self.seat.board.columns.waiting_tokens[self.seat.address.seat]


def n_duplicates():
    """Return how many texts so far were equal to a text that was waiting or running when they arrived."""
    return conftest.samples(counters)("embeddings_texts_deduplicated_total", {"model": "model"}) or 0


@pytest.fixture
def exchange(no_leaked_threads):
    exchange = Exchange(4)
    yield exchange
    exchange.close()


@pytest.fixture
def workers(exchange):
    workers = []

    def start(**options):
        workers.append(Worker(exchange, **options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.backend.proceed.set()
        worker.runner.close()


def test_one_request_is_computed_by_every_worker(workers):
    one, other = workers(), workers()
    ids = texts(200)
    assert_right(ids, one.compute(ids))
    shares = [sum(map(len, worker.backend.batches)) for worker in (one, other)]
    assert sum(shares) == 200
    assert min(shares) > 0


def test_requests_of_all_workers_at_once_each_get_their_own(workers):
    crew = [workers(n_computing=3) for _ in range(3)]

    def ask(number):
        ids = texts(number % 17 + 1, n_tokens=number % 11 + 1, first=number * 20)
        return ids, crew[number % 3].compute(ids)

    with ThreadPoolExecutor(24) as clients:
        for ids, vectors in clients.map(ask, range(600)):
            assert_right(ids, vectors)


def test_a_busy_worker_lets_an_idle_one_compute(workers):
    """Given a worker whose core is busy, when it gets another request, then the other worker computes it."""
    one, other = workers(), workers()
    one.backend.proceed.clear()
    with ThreadPoolExecutor(2) as clients:
        held = clients.submit(one.compute, texts(1))
        assert one.backend.entered.wait(10)
        assert_right(texts(3, first=50), one.compute(texts(3, first=50)))
        assert not held.done()
        assert other.backend.batches == [[8] * 3]
        one.backend.proceed.set()
        held.result(10)


def test_a_core_that_gets_free_fetches_what_waits_elsewhere(workers):
    """Given two busy workers and a waiting request, when the other worker is free, then it computes the request."""
    one, other = workers(), workers()
    one.backend.proceed.clear()
    other.backend.proceed.clear()
    with ThreadPoolExecutor(3) as clients:
        held = [clients.submit(one.compute, texts(1)), clients.submit(other.compute, texts(1, first=20))]
        assert one.backend.entered.wait(10)
        assert other.backend.entered.wait(10)
        waiting = clients.submit(one.compute, texts(2, first=50))
        other.backend.proceed.set()
        assert_right(texts(2, first=50), waiting.result(10))
        assert not held[0].done()
        one.backend.proceed.set()


def test_the_batch_of_a_worker_that_is_gone_is_computed_again(workers, exchange):
    """Given a batch at another worker, when that worker has died, as the master says, then another computes it."""
    one, other = workers(), workers()
    other.backend.proceed.clear()
    with ThreadPoolExecutor(1) as clients:
        asked = clients.submit(one.compute, texts(60))
        assert other.backend.entered.wait(10)
        # The master does this for a killed worker. Here the worker's thread keeps running, and answers late.
        exchange.leave(other.seat)
        assert_right(texts(60), asked.result(10))
        other.backend.proceed.set()
        assert_right(texts(100, first=70), one.compute(texts(100, first=70)))


def test_a_worker_that_stops_gives_back_what_it_did_not_compute(workers):
    one, other = workers(), workers()
    other.backend.proceed.clear()
    with ThreadPoolExecutor(2) as clients:
        asked = clients.submit(one.compute, texts(60))
        assert other.backend.entered.wait(10)
        stopped = clients.submit(other.runner.close)
        other.backend.proceed.set()
        stopped.result(10)
        assert_right(texts(60), asked.result(10))
        assert_right(texts(9, first=80), one.compute(texts(9, first=80)))


def test_only_so_many_workers_compute_as_there_are_cores(workers):
    owner, other = workers(n_computing=1), workers(n_computing=1)
    assert other.backend.prepared_in is None
    assert_right(texts(40), other.compute(texts(40)))
    assert other.backend.batches == []
    assert sum(map(len, owner.backend.batches)) == 40


def test_the_next_worker_computes_when_the_first_is_gone(workers, exchange):
    owner, other = workers(n_computing=1), workers(n_computing=1)
    owner.backend.proceed.clear()
    with ThreadPoolExecutor(1) as clients:
        asked = clients.submit(other.compute, texts(5))
        assert owner.backend.entered.wait(10)
        exchange.leave(owner.seat)
        assert_right(texts(5), asked.result(10))
    assert other.backend.prepared_in.startswith("inference")


class Picky(FakeBackend):
    """A backend that fails if a text begins with 666."""

    def compute(self, inputs, n_prompt_tokens):
        if any(ids[0] == 666 for ids in inputs):
            raise ValueError("broken")
        return super().compute(inputs, n_prompt_tokens)


def test_a_text_that_fails_fails_alone(workers):
    """Given a text that no backend can compute, then the other requests in its batch still get their vectors."""
    one, _ = workers(backend=Picky()), workers(backend=Picky())
    with ThreadPoolExecutor(8) as clients:
        bad = clients.submit(one.compute, texts(1, first=666))
        good = [clients.submit(one.compute, texts(2, first=10 * n)) for n in range(1, 6)]
        with pytest.raises(ValueError, match="broken"):
            bad.result(10)
        for n, future in zip(range(1, 6), good, strict=True):
            assert_right(texts(2, first=10 * n), future.result(10))


def test_a_text_that_fails_at_another_worker_is_tried_here(workers):
    """Given a busy worker and another that cannot compute a text, then the text waits for the first worker."""
    one, other = workers(), workers(backend=Picky())
    one.backend.proceed.clear()
    with ThreadPoolExecutor(2) as clients:
        held = clients.submit(one.compute, texts(1))
        assert one.backend.entered.wait(10)
        asked = clients.submit(one.compute, texts(1, first=666))
        one.backend.proceed.set()
        assert_right(texts(1, first=666), asked.result(10))
        held.result(10)
    assert other.runner.problem() is None


def test_vectors_of_a_wrong_shape_are_an_error_and_harm_no_thread(workers):
    class Short(FakeBackend):
        def compute(self, inputs, n_prompt_tokens):
            return Result(super().compute(inputs, n_prompt_tokens).values[:, 1:])

    one, other = workers(backend=Short()), workers()
    with pytest.raises(RuntimeError, match="this is a bug"):
        one.compute(texts(1))
    assert one.runner.problem() is None
    assert_right(texts(3), other.compute(texts(3)))


def test_a_request_ends_whoever_computes_while_workers_come_and_go(workers):
    """Given one computing worker of three, when it is replaced while requests come, then all requests are answered.

    The new worker takes the seat of the old one, and still counts as the youngest.
    """
    crew = [workers(n_computing=1) for _ in range(3)]
    stop = threading.Event()

    def ask(worker, first):
        n_asked = 0
        while not stop.is_set():
            ids = texts(7, first=first + n_asked % 50)
            assert_right(ids, worker.compute(ids))
            n_asked += 1
        return n_asked

    with ThreadPoolExecutor(2) as clients:
        asking = [clients.submit(ask, worker, 1000 * n) for n, worker in enumerate(crew[1:], 1)]
        for _ in range(3):
            crew[0].runner.close()
            new = workers(n_computing=1)
            assert new.rank == 2
            assert_right(texts(3), new.compute(texts(3)))
            new.runner.close()
            crew[0] = workers(n_computing=1)
        stop.set()
        assert all(future.result(10) > 0 for future in asking)
    assert crew[1].backend.prepared_in is not None
    assert crew[2].backend.prepared_in is None


def test_load_at_the_computing_worker_does_not_lock_the_others_out(workers):
    """Given a computing worker that always has its own texts, then it still computes another worker's text soon."""
    owner, other = workers(n_computing=1), workers(n_computing=1)
    stop = threading.Event()
    n_rounds = []

    def load(first):
        while not stop.is_set():
            owner.compute(texts(64, first=first + 100 * len(n_rounds)))
            n_rounds.append(1)

    with ThreadPoolExecutor(4) as clients:
        loading = [clients.submit(load, 10**6 * n) for n in (1, 2, 3)]
        while len(n_rounds) < 3:
            time.sleep(0)
        asked = clients.submit(other.compute, texts(1))
        end = time.monotonic() + 10
        while not asked.done() and time.monotonic() < end:
            time.sleep(0.01)
        n_rounds_meanwhile = len(n_rounds)
        stop.set()
        for future in loading:
            future.result(10)
    assert_right(texts(1), asked.result(0))
    assert n_rounds_meanwhile < 500


def test_a_batch_too_large_to_travel_is_computed_by_who_has_it_and_holds_nobody_up(workers):
    owner, other, third = (workers(n_computing=1, backend=FakeBackend(target_batch_tokens=10**6)) for _ in range(3))
    huge = texts(2, n_tokens=40_000)
    with ThreadPoolExecutor(2) as clients:
        asked = clients.submit(other.compute, huge)
        assert_right(texts(3), third.compute(texts(3)))
        assert_right(huge, asked.result(10))
    assert other.backend.batches
    assert owner.backend.batches


def test_batches_too_large_to_travel_are_computed_where_they_are(workers):
    one, other = workers(backend=FakeBackend(target_batch_tokens=10**6)), workers()
    huge = texts(2, n_tokens=40_000)
    assert_right(huge, one.compute(huge))
    assert other.backend.batches == []


RESULTS = {
    "vectors": Result(np.random.default_rng(0).normal(size=(512, 1024)).astype(np.float32)),
    "scores": Result(np.arange(3, dtype=np.float64)),
    "sparse vectors": Result(
        np.array([(1, 0.5), (7, 0.25), (2, 1.0)], dtype=[("index", np.int32), ("weight", np.float32)]),
        np.array([0, 2, 2, 3]),
    ),
    "matrices": Result(np.arange(10, dtype=np.float32).reshape(5, 2), np.array([0, 3, 4, 5])),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_of_any_kind_comes_whole(exchange, kind):
    """Given a receiver that does not read, then the sender does not block, and the whole result arrives later."""
    result, seats = RESULTS[kind], [exchange.board.take_seat(), exchange.board.take_seat()]
    one, other = (Mailbox(exchange, seat) for seat in seats)
    work = Work(seats[0].address, 7, Lane(1, 2), texts(3))
    assert one.send(work, seats[1].address)
    received = other.receive(10)
    assert (received.owner, received.number, received.lane) == work[:3]
    assert [ids.tolist() for ids in received.inputs] == [ids.tolist() for ids in texts(3)]
    other.send_back(received, result)
    end = time.monotonic() + 10
    while not isinstance(delivered := one.receive(0.01), Returned):
        assert time.monotonic() < end
        # The sender sends the rest while it waits for messages.
        other.receive(0)
    assert (delivered.number, delivered.worker) == (7, seats[1].address)
    assert delivered.outcome.values.dtype == result.values.dtype
    np.testing.assert_array_equal(delivered.outcome.values, result.values)
    np.testing.assert_array_equal(delivered.outcome.offsets, result.offsets)


def test_a_message_for_an_earlier_worker_on_the_seat_is_not_read(exchange):
    one, other = exchange.board.take_seat(), exchange.board.take_seat()
    assert Mailbox(exchange, one).send(Work(one.address, 1, Lane(0, 0), texts(1)), other.address)
    other.leave()
    new = exchange.board.take_seat()
    assert new.address.seat == other.address.seat
    assert Mailbox(exchange, new).receive(10) is None


def test_a_full_exchange_has_no_seat(exchange):
    assert [exchange.board.take_seat() is None for _ in range(5)] == [False] * 4 + [True]


def test_equal_texts_are_computed_once(workers):
    """Given equal texts in one request and in waiting requests, then each different text is computed once."""
    one = workers()
    one.backend.proceed.clear()
    wanted = texts(5, first=10)
    n_before = n_duplicates()
    with ThreadPoolExecutor(4) as clients:
        first = clients.submit(one.compute, texts(1))
        assert one.backend.entered.wait(10)
        same = [clients.submit(one.compute, wanted * 3) for _ in range(3)]
        until(lambda: n_duplicates() == n_before + 10 + 15 + 15)
        one.backend.proceed.set()
        first.result(10)
        for future in same:
            assert_right(wanted * 3, future.result(10))
    assert sum(map(len, one.backend.batches)) == 1 + 5


def hold(worker, clients, ids=None):
    """Let a worker's core begin a batch that does not end; return the future of its request."""
    worker.backend.proceed.clear()
    held = clients.submit(worker.compute, texts(1, first=900) if ids is None else ids)
    assert worker.backend.entered.wait(10)
    return held


def test_a_request_over_its_deadline_fails_and_is_not_computed(workers):
    one = workers()
    with ThreadPoolExecutor(2) as clients:
        held = hold(one, clients)
        caller = Caller()
        caller.deadline_s = time.monotonic() + 0.05
        with pytest.raises(DeadlineExceededError):
            one.compute(texts(3), caller)
        assert one.n_waiting_tokens == 0
        one.backend.proceed.set()
        held.result(10)
    assert one.backend.batches == [[8]]


def test_the_texts_of_a_client_who_left_are_dropped_but_for_those_that_others_want(workers):
    one = workers()
    with ThreadPoolExecutor(3) as clients:
        held = hold(one, clients)
        caller = Caller()
        leaving = clients.submit(one.compute, texts(5), caller)
        until(lambda: one.n_waiting_tokens == 40)
        n_before = n_duplicates()
        staying = clients.submit(one.compute, texts(2))
        until(lambda: n_duplicates() == n_before + 2)
        caller.leave()
        with pytest.raises(ClientGoneError):
            leaving.result(10)
        assert one.n_waiting_tokens == 16
        one.backend.proceed.set()
        assert_right(texts(2), staying.result(10))
        held.result(10)
    assert sum(map(len, one.backend.batches)) == 3


def test_a_client_who_left_before_is_not_computed_for(workers):
    one = workers()
    with ThreadPoolExecutor(1) as clients:
        held = hold(one, clients)
        caller = Caller()
        caller.leave()
        with pytest.raises(ClientGoneError):
            one.compute(texts(3), caller)
        assert one.n_waiting_tokens == 0
        one.backend.proceed.set()
        held.result(10)


def test_more_than_may_wait_in_all_workers_is_refused_and_one_request_is_taken_whole(workers):
    limits = {"limits": Limits(n_tokens=100, n_bytes=10**6, tokens_per_s=10)}
    one, other = workers(**limits), workers(**limits)
    with ThreadPoolExecutor(4) as clients:
        held = [hold(one, clients), hold(other, clients, texts(1, first=950))]
        # 240 tokens exceed the queue's limit, but the queue is empty. The other worker has room for 64 of them.
        large = clients.submit(one.compute, texts(30))
        until(lambda: one.n_waiting_tokens == 176)
        for worker in (one, other):
            with pytest.raises(OverloadedError, match=r"176 tokens wait already, and the limit .* is 100") as told:
                worker.compute(texts(1, first=50))
            assert told.value.headers["Retry-After"] == "18"
        for worker in (one, other):
            worker.backend.proceed.set()
        assert_right(texts(30), large.result(10))
        for future in held:
            future.result(10)
    assert_right(texts(2), other.compute(texts(2)))


def test_a_worker_that_hangs_gives_up_that_batch_and_leaves_the_rest_to_others(workers):
    """Given a worker's own batch that hangs, when the worker retires, then the other one computes the waiting texts."""
    one, other = workers(inference_timeout_s=0.01), workers()
    with ThreadPoolExecutor(4) as clients:
        hung = hold(one, clients)
        held = hold(other, clients, texts(1, first=950))
        waiting = clients.submit(one.compute, texts(5))
        # The other worker has room for two texts of its share.
        until(lambda: one.n_waiting_tokens == 24)
        until(one.runner.retire_if_stuck)
        with pytest.raises(DeadlineExceededError, match="was not computed within"):
            hung.result(10)
        assert "about to be replaced" in one.runner.problem()
        with pytest.raises(NotReadyError):
            one.compute(texts(1, first=50))
        other.backend.proceed.set()
        assert_right(texts(5), waiting.result(10))
        held.result(10)
        # The hung batch ends late, which has no effect.
        one.backend.proceed.set()
    assert_right(texts(3), other.compute(texts(3)))


def test_a_worker_that_hangs_on_anothers_batch_tells_it_and_sends_back_what_it_did_not_begin(workers, exchange):
    owner, other = workers(n_computing=1, inference_timeout_s=0.01), workers(n_computing=1)
    with ThreadPoolExecutor(4) as clients:
        owner.backend.proceed.clear()
        hung = clients.submit(other.compute, texts(1))
        assert owner.backend.entered.wait(10)
        # The computing worker has room for it.
        not_begun = clients.submit(other.compute, texts(2, first=50))
        until(lambda: owner.room_tokens == 64 - 16)
        until(owner.runner.retire_if_stuck)
        with pytest.raises(DeadlineExceededError):
            hung.result(10)
        until(lambda: other.n_waiting_tokens == 16)
        # The master does this when the process has ended.
        exchange.leave(owner.seat)
        assert_right(texts(2, first=50), not_begun.result(10))
        owner.backend.proceed.set()


def test_a_worker_that_hangs_and_has_no_other_refuses_what_waits(workers):
    one = workers(inference_timeout_s=0.01)
    with ThreadPoolExecutor(2) as clients:
        hung = hold(one, clients)
        waiting = clients.submit(one.compute, texts(5))
        until(lambda: one.n_waiting_tokens == 40)
        until(one.runner.retire_if_stuck)
        with pytest.raises(NotReadyError, match="no other"):
            waiting.result(10)
        with pytest.raises(DeadlineExceededError):
            hung.result(10)
        one.backend.proceed.set()


def test_what_nobody_took_is_refused_when_there_is_no_more_time(workers):
    one, other = workers(inference_timeout_s=0.01), workers()
    with ThreadPoolExecutor(3) as clients:
        hung, held = hold(one, clients), hold(other, clients, texts(1, first=950))
        waiting = clients.submit(one.compute, texts(5))
        until(lambda: one.n_waiting_tokens == 24)
        until(one.runner.retire_if_stuck)
        one.runner.refuse_rest()
        with pytest.raises(NotReadyError):
            waiting.result(10)
        with pytest.raises(DeadlineExceededError):
            hung.result(10)
        other.backend.proceed.set()
        held.result(10)
        one.backend.proceed.set()


def test_a_batch_that_ended_in_time_is_not_given_up(workers):
    one = workers(inference_timeout_s=0.01)
    with ThreadPoolExecutor(1) as clients:
        held = hold(one, clients)
        one.backend.proceed.set()
        assert_right(texts(1, first=900), held.result(10))
        assert not one.runner.retire_if_stuck()
        assert one.runner.problem() is None
    assert_right(texts(3), one.compute(texts(3)))


def test_a_text_whose_time_was_over_before_it_was_read_is_not_sent_to_anyone(workers):
    one, other = workers(), workers()
    with ThreadPoolExecutor(1) as clients:
        held = hold(one, clients)
        caller = Caller()
        caller.deadline_s = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            one.compute(texts(3), caller)
        one.backend.proceed.set()
        held.result(10)
    assert other.backend.batches == []


def test_where_one_computes_and_hangs_what_waits_in_it_is_refused_at_once(workers):
    owner, _ = workers(n_computing=1, inference_timeout_s=0.01), workers(n_computing=1)
    with ThreadPoolExecutor(2) as clients:
        hung = hold(owner, clients)
        waiting = clients.submit(owner.compute, texts(5))
        until(lambda: owner.n_waiting_tokens == 40)
        until(owner.runner.retire_if_stuck)
        with pytest.raises(NotReadyError):
            waiting.result(10)
        with pytest.raises(DeadlineExceededError):
            hung.result(10)
        owner.backend.proceed.set()
