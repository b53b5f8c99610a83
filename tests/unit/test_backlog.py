"""The backlog: which text comes next, which texts share a batch, and that every text is answered once."""

import gc
import itertools

import numpy as np
import pytest

from embedding_api.engine.backends.layout import Packing
from embedding_api.engine.scheduling.backlog import Backlog
from embedding_api.engine.scheduling.batch import BatchState
from embedding_api.engine.scheduling.cost import Cost
from embedding_api.engine.scheduling.job import Job, Text
from embedding_api.engine.work import Address, Lane, Result
from tests.fakes import FakeBackend, vector

# A batch's start costs as much as ten tokens.
COST = Cost(start_s=1e-3, token_s=1e-4)


def texts(n, n_tokens=8, first=1):
    """Return the token ids of `n` different texts, each int64, (n_tokens,)."""
    return [np.array([first + i, *range(2, n_tokens + 1)], dtype=np.int64) for i in range(n)]


OWNER = Address(0, 1)


class OneClock(Backlog):
    """A backlog with one second between events."""

    now_s = 0.0

    def tick(self):
        self.now_s += 1.0
        return self.now_s

    def add(self, ids, model=0, n_prompt_tokens=0):
        job = Job()
        super().add(job, Lane(model, n_prompt_tokens), ids)
        return job

    def compute(self, batch):
        self.answer(batch, result(batch), self.tick())

    def run(self, n_cores=1):
        """Compute all that waits. Return the lengths in each batch."""
        lengths = []
        while (batch := self.form_batch(self.n_waiting_tokens / n_cores)) is not None:
            lengths.append([len(ids) for ids in batch.work.inputs])
            self.compute(batch)
        return lengths


@pytest.fixture
def backlog():
    return OneClock(OWNER, [FakeBackend()] * 2, [COST] * 2, "process")


@pytest.fixture
def add(backlog):
    return backlog.add


def result(batch):
    return Result(np.stack([vector(ids) for ids in batch.work.inputs]))


def begin(backlog, batch, seat):
    batch.hand_over(Address(seat, 1), BatchState.RUNNING, backlog.tick())


def assert_right(job, ids):
    assert job.is_done
    assert job.error is None
    np.testing.assert_array_equal(job.result().values, np.stack([vector(text) for text in ids]))


def test_texts_of_all_jobs_go_together_and_each_job_gets_its_own(backlog, add):
    groups = [texts(3, n_tokens=8, first=10 * n) for n in range(4)]
    jobs = [add(ids) for ids in groups]
    batches = backlog.run()
    assert len(batches) == 2
    assert sum(map(len, batches)) == 12
    for job, ids in zip(jobs, groups, strict=True):
        assert_right(job, ids)
    assert backlog.n_waiting_tokens == 0


def test_models_and_prompts_are_not_mixed(backlog, add):
    jobs = [
        (add(texts(1, first=n), model, prompt), texts(1, first=n))
        for n, (model, prompt) in enumerate(itertools.product([0, 1], [0, 3]), 1)
    ]
    assert backlog.run() == [[8]] * 4
    for job, ids in jobs:
        assert_right(job, ids)


def test_a_short_job_passes_the_backlog_of_large_ones(backlog, add):
    """Given large jobs that are half done, when a short job comes, then it is next."""
    for n in range(4):
        add(texts(100, n_tokens=16, first=1000 * n))
    for _ in range(40):
        backlog.compute(backlog.form_batch())
    short = add(texts(1, n_tokens=3))
    backlog.compute(backlog.form_batch())
    assert short.is_done


def test_a_large_job_is_not_held_up_by_short_ones_although_a_start_costs_little():
    """Given a start as cheap as a token, then a large job among 20 clients with short ones gets its part of batches."""
    backend = FakeBackend(target_batch_tokens=256)
    backend.n_computed = Packing(0, 0).n_computed
    backlog = OneClock(OWNER, [backend], [Cost(start_s=1e-4, token_s=1e-4)], "process")
    large = backlog.add(texts(128, n_tokens=64, first=1_000_000))
    short = {}
    for n_batches in range(3000):
        for client in range(20):
            if client not in short or short[client].is_done:
                short[client] = backlog.add(texts(1, n_tokens=12, first=1 + 20 * n_batches + client))
        backlog.compute(backlog.form_batch())
        if large.is_done:
            break
    # At equal shares for all 21 it would take 672 batches.
    assert n_batches < 3 * 21 * 128 * 64 / 256


def test_of_texts_due_at_the_same_time_the_first_leaves_first_also_after_it_waited_again(backlog, add):
    jobs = [add(texts(1, n_tokens=8, first=n)) for n in range(1, 20)]
    backlog.requeue(backlog.form_batch(16), 0.0)
    while waiting := [job for job in jobs if not job.is_done]:
        backlog.compute(backlog.form_batch(16))
        assert waiting[0].is_done


def test_a_long_text_is_not_starved_by_short_ones_that_keep_coming(backlog, add):
    long = add(texts(1, n_tokens=60))
    for n in range(100):
        add(texts(20, n_tokens=3, first=100 * n))
        backlog.compute(backlog.form_batch())
        if long.is_done:
            break
    assert n <= 60 / 3


def test_with_cores_to_spare_a_job_is_parted(backlog, add):
    add(texts(8, n_tokens=8))
    assert len(backlog.form_batch(backlog.n_waiting_tokens / 2).work.inputs) == 4


def test_a_batch_is_not_parted_where_its_start_costs_more(backlog, add):
    add(texts(2, n_tokens=4))
    assert len(backlog.form_batch(backlog.n_waiting_tokens / 2).work.inputs) == 2


def test_a_text_over_the_budget_travels_alone(backlog, add):
    add(texts(2, n_tokens=65))
    assert backlog.run() == [[65], [65]]


def test_equal_texts_are_computed_once_waiting_or_under_way(backlog, add):
    ids = texts(2)
    jobs = [add(ids), add([ids[0], ids[1], ids[0]])]
    batch = backlog.form_batch()
    jobs.append(add(ids[:1]))
    assert backlog.form_batch() is None
    backlog.compute(batch)
    for job, wanted in zip(jobs, [ids, [ids[0], ids[1], ids[0]], ids[:1]], strict=True):
        assert_right(job, wanted)
    add(ids)
    assert backlog.run() == [[8, 8]]


def test_a_text_in_a_hurry_takes_the_equal_one_of_a_large_job_with_it(backlog, add):
    large = texts(100, n_tokens=16)
    add(large)
    backlog.compute(backlog.form_batch())
    short = add(large[99:])
    backlog.compute(backlog.form_batch())
    assert_right(short, large[99:])


def test_what_is_given_back_keeps_its_turn(backlog, add):
    first = add(texts(8))
    batch = backlog.form_batch()
    add(texts(200, first=100))
    backlog.requeue(batch, backlog.tick())
    for _ in range(3):
        backlog.compute(backlog.form_batch())
    assert_right(first, texts(8))


def test_a_batch_that_fails_is_tried_text_by_text(backlog, add):
    good, bad = add(texts(2)), add(texts(1, first=666))
    backlog.fail(backlog.form_batch(), ValueError("one of them"), backlog.tick())
    while (batch := backlog.form_batch()) is not None:
        assert len(batch.work.inputs) == 1
        if batch.work.inputs[0][0] == 666:
            backlog.fail(batch, ValueError("this one"), backlog.tick())
        else:
            backlog.compute(batch)
    assert_right(good, texts(2))
    assert str(bad.error) == "this one"
    assert backlog.n_waiting_tokens == 0


def test_the_rest_of_a_job_that_failed_is_not_computed(backlog, add):
    job = add(texts(1, n_tokens=64) + texts(4))
    backlog.fail(backlog.form_batch(), ValueError("broken"), backlog.tick())
    assert job.is_done
    assert backlog.form_batch() is None
    assert backlog.n_waiting_tokens == 0


def test_when_all_is_refused_every_job_is_told(backlog, add):
    jobs = [add(texts(40)), add(texts(2, first=100), model=1)]
    backlog.refuse_waiting(ValueError("the end"), 1.0)
    assert [str(job.error) for job in jobs] == ["the end"] * 2
    assert backlog.form_batch() is None


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_every_text_is_answered_once(seed):
    """Given jobs whose batches end in any order, come back undone or fail, then all jobs get the right answer."""
    random = np.random.default_rng(seed)
    backlog = OneClock(OWNER, [FakeBackend()], [COST], "process")
    jobs, away, n_new = [], [], 0
    while len(jobs) < 100 or away or backlog.n_waiting_tokens:
        what = random.integers(5)
        if what <= 1 and len(jobs) < 100:
            n_new += 10
            n_tokens = int(random.integers(1, 40))
            ids = texts(int(random.integers(1, 20)), n_tokens, first=int(random.integers(n_new)))
            jobs.append((backlog.add(ids), ids))
        elif what == 2 and (batch := backlog.form_batch(backlog.n_waiting_tokens / random.integers(1, 4))) is not None:
            away.append(batch)
        elif away:
            batch = away.pop(int(random.integers(len(away))))
            fate = random.integers(4)
            if fate == 0:
                backlog.requeue(batch, backlog.tick())
            elif fate == 1 and len(batch.work.inputs) > 1:
                backlog.fail(batch, ValueError("try again"), backlog.tick())
            else:
                backlog.compute(batch)
    for job, ids in jobs:
        assert_right(job, ids)


def test_a_job_that_nobody_waits_for_leaves_and_its_tokens_with_it(backlog, add):
    gone, stays = add(texts(5)), add(texts(3, first=4))
    assert backlog.n_waiting_tokens == 8 * 6
    backlog.abandon(gone, RuntimeError("left"), backlog.tick())
    assert gone.n_dropped == 3
    assert backlog.n_waiting_tokens == 8 * 3
    assert sum(map(len, backlog.run())) == 3
    assert_right(stays, texts(3, first=4))
    assert backlog.n_waiting_tokens == 0
    assert isinstance(gone.error, RuntimeError)


def test_a_text_that_left_is_computed_for_who_wants_it_later(backlog, add):
    backlog.abandon(add(texts(3)), RuntimeError("left"), backlog.tick())
    again = add(texts(3))
    assert sum(map(len, backlog.run())) == 3
    assert_right(again, texts(3))


def test_a_batch_that_comes_back_undone_keeps_only_what_is_wanted(backlog, add):
    gone, stays = add(texts(2)), add(texts(2, first=3))
    batch = backlog.form_batch()
    assert len(batch.work.inputs) == 4
    backlog.abandon(gone, RuntimeError("left"), backlog.tick())
    assert gone.n_dropped == 0
    backlog.requeue(batch, backlog.tick())
    assert backlog.n_waiting_tokens == 16
    assert sum(map(len, backlog.run())) == 2
    assert_right(stays, texts(2, first=3))


def test_a_failing_text_takes_the_rest_of_its_job_along(backlog, add):
    """Given a job whose first text fails, then its other texts are not computed, and do not count as waiting."""
    job = add([*texts(1, n_tokens=60), *texts(20, n_tokens=30, first=50)])
    batch = backlog.form_batch()
    assert len(batch.work.inputs) == 1
    backlog.fail(batch, RuntimeError("no vector"), backlog.tick())
    assert isinstance(job.error, RuntimeError)
    assert backlog.n_waiting_tokens == 0
    assert backlog.run() == []


def test_thousands_of_jobs_that_leave_leave_nothing_behind(backlog, add):
    first = add(texts(1))
    for n in range(2000):
        backlog.abandon(add(texts(3, first=10 + n)), RuntimeError("left"), backlog.tick())
    assert backlog.n_waiting_texts == 1
    gc.collect()
    assert sum(isinstance(one, Text) for one in gc.get_objects()) < 10
    assert sum(map(len, backlog.run())) == 1
    assert_right(first, texts(1))


def test_two_jobs_of_one_batch_remember_the_same_trip(backlog, add):
    jobs = [add(texts(2, first=10 * n)) for n in range(2)]
    batch = backlog.form_batch()
    begin(backlog, batch, 3)
    (run,) = jobs[0].timing.runs
    assert jobs[1].timing.runs == [run]
    assert (run.n_texts, run.n_tokens, run.seat, run.ended_s) == (4, 32, 3, None)
    backlog.compute(batch)
    for job in jobs:
        assert job.timing.handed_over_s == run.handed_over_s <= run.ended_s <= job.timing.ended_s


def test_who_wants_a_text_that_is_under_way_is_on_its_trip(backlog, add):
    first = add(texts(1))
    batch = backlog.form_batch()
    begin(backlog, batch, 0)
    late = add(texts(1))
    backlog.compute(batch)
    assert late.timing.runs == first.timing.runs != []
    assert add(texts(1)).timing.runs == []


def test_a_batch_that_fails_and_its_texts_alone_are_trips_of_their_own(backlog, add):
    job = add(texts(2))
    batch = backlog.form_batch()
    begin(backlog, batch, 0)
    backlog.fail(batch, RuntimeError("two"), backlog.tick())
    while (alone := backlog.form_batch()) is not None:
        begin(backlog, alone, 1)
        backlog.compute(alone)
    assert [(run.n_texts, run.seat) for run in job.timing.runs] == [(2, 0), (1, 1), (1, 1)]
    assert len({run.batch for run in job.timing.runs}) == 3
    assert all(run.ended_s is not None for run in job.timing.runs)


def test_a_job_that_is_over_goes_on_no_more_trips(backlog, add):
    job = add(texts(1))
    add(texts(1))
    backlog.abandon(job, RuntimeError("gone"), backlog.tick())
    begin(backlog, backlog.form_batch(), 0)
    assert job.timing.runs == []
    assert (job.timing.queue_s, job.timing.inference_s) == (0, 0)
