"""The backlog: whose turn it is, what goes together, and that every text is answered once."""

import itertools

import numpy as np
import pytest

from embedding_api.engine.scheduling.backlog import Backlog, Job
from embedding_api.engine.scheduling.cost import Cost
from tests.fakes import DIM, FakeBackend, vector

# A batch's start costs as much as ten tokens.
COST = Cost(start_s=1e-3, token_s=1e-4)


def texts(n, n_tokens=8, first=1):
    """Distinct ids, int64, (n_tokens,)."""
    return [np.array([first + i, *range(2, n_tokens + 1)], dtype=np.int64) for i in range(n)]


@pytest.fixture
def backlog():
    return Backlog([FakeBackend()] * 2, [COST] * 2)


@pytest.fixture
def add(backlog):
    def add(ids, model=0, n_prompt_tokens=0):
        job = Job(len(ids), DIM)
        backlog.add(job, model, ids, n_prompt_tokens)
        return job

    return add


def answer(backlog, batch):
    backlog.answer(batch, np.stack([vector(ids) for ids in batch.ids]))


def run(backlog, n_cores=1):
    """Computes all that waits; the lengths in each batch."""
    lengths = []
    while (batch := backlog.take(n_cores)) is not None:
        lengths.append([len(ids) for ids in batch.ids])
        answer(backlog, batch)
    return lengths


def assert_right(job, ids):
    assert job.done.is_set()
    assert job.error is None
    np.testing.assert_array_equal(job.vectors, np.stack([vector(text) for text in ids]))


def test_texts_of_all_jobs_go_together_and_each_job_gets_its_own(backlog, add):
    groups = [texts(3, n_tokens=8, first=10 * n) for n in range(4)]
    jobs = [add(ids) for ids in groups]
    batches = run(backlog)
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
    assert run(backlog) == [[8]] * 4
    for job, ids in jobs:
        assert_right(job, ids)


def test_a_short_job_passes_the_backlog_of_large_ones(backlog, add):
    """Given large jobs that came long ago and are half done, when a short one comes, then it is next."""
    for n in range(4):
        add(texts(100, n_tokens=16, first=1000 * n))
    for _ in range(40):
        answer(backlog, backlog.take(1))
    short = add(texts(1, n_tokens=3))
    answer(backlog, backlog.take(1))
    assert short.done.is_set()


def test_a_long_text_is_not_starved_by_short_ones_that_keep_coming(backlog, add):
    long = add(texts(1, n_tokens=60))
    for n in range(100):
        add(texts(20, n_tokens=3, first=100 * n))
        answer(backlog, backlog.take(1))
        if long.done.is_set():
            break
    assert n <= 60 / 3


def test_with_cores_to_spare_a_job_is_parted(backlog, add):
    add(texts(8, n_tokens=8))
    assert len(backlog.take(2).ids) == 4


def test_a_batch_is_not_parted_where_its_start_costs_more(backlog, add):
    add(texts(2, n_tokens=4))
    assert len(backlog.take(2).ids) == 2


def test_a_text_over_the_budget_travels_alone(backlog, add):
    add(texts(2, n_tokens=65))
    assert run(backlog) == [[65], [65]]


def test_equal_texts_are_computed_once_waiting_or_under_way(backlog, add):
    ids = texts(2)
    jobs = [add(ids), add([ids[0], ids[1], ids[0]])]
    batch = backlog.take(1)
    jobs.append(add(ids[:1]))
    assert backlog.take(1) is None
    answer(backlog, batch)
    for job, wanted in zip(jobs, [ids, [ids[0], ids[1], ids[0]], ids[:1]], strict=True):
        assert_right(job, wanted)
    add(ids)
    assert run(backlog) == [[8, 8]]


def test_a_text_in_a_hurry_takes_the_equal_one_of_a_large_job_with_it(backlog, add):
    large = texts(100, n_tokens=16)
    add(large)
    answer(backlog, backlog.take(1))
    short = add(large[99:])
    answer(backlog, backlog.take(1))
    assert_right(short, large[99:])


def test_what_is_given_back_keeps_its_turn(backlog, add):
    first = add(texts(8))
    batch = backlog.take(1)
    add(texts(200, first=100))
    backlog.give_back(batch)
    for _ in range(3):
        answer(backlog, backlog.take(1))
    assert_right(first, texts(8))


def test_a_batch_that_fails_is_tried_text_by_text(backlog, add):
    good, bad = add(texts(2)), add(texts(1, first=666))
    backlog.fail(backlog.take(1), ValueError("one of them"))
    while (batch := backlog.take(1)) is not None:
        assert len(batch.ids) == 1
        if batch.ids[0][0] == 666:
            backlog.fail(batch, ValueError("this one"))
        else:
            answer(backlog, batch)
    assert_right(good, texts(2))
    assert str(bad.error) == "this one"
    assert backlog.n_waiting_tokens == 0


def test_the_rest_of_a_job_that_failed_is_not_computed(backlog, add):
    job = add(texts(1, n_tokens=64) + texts(4))
    backlog.fail(backlog.take(1), ValueError("broken"))
    assert job.done.is_set()
    assert backlog.take(1) is None
    assert backlog.n_waiting_tokens == 0


def test_when_all_is_refused_every_job_is_told(backlog, add):
    jobs = [add(texts(40)), add(texts(2, first=100), model=1)]
    backlog.refuse(ValueError("the end"))
    assert [str(job.error) for job in jobs] == ["the end"] * 2
    assert backlog.take(1) is None


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_every_text_is_answered_once(seed):
    """Given jobs, and batches that end in any order, come back undone or fail, then all jobs are answered right."""
    random = np.random.default_rng(seed)
    backlog = Backlog([FakeBackend()], [COST])
    jobs, away, n_new = [], [], 0
    while len(jobs) < 100 or away or backlog.n_waiting_tokens:
        what = random.integers(5)
        if what <= 1 and len(jobs) < 100:
            n_new += 10
            n_tokens = int(random.integers(1, 40))
            ids = texts(int(random.integers(1, 20)), n_tokens, first=int(random.integers(n_new)))
            jobs.append((Job(len(ids), DIM), ids))
            backlog.add(jobs[-1][0], 0, ids, 0)
        elif what == 2 and (batch := backlog.take(int(random.integers(1, 4)))) is not None:
            away.append(batch)
        elif away:
            batch = away.pop(int(random.integers(len(away))))
            fate = random.integers(4)
            if fate == 0:
                backlog.give_back(batch)
            elif fate == 1 and len(batch.ids) > 1:
                backlog.fail(batch, ValueError("try again"))
            else:
                answer(backlog, batch)
    for job, ids in jobs:
        assert_right(job, ids)


def test_a_job_that_nobody_waits_for_leaves_and_its_tokens_with_it(backlog, add):
    gone, stays = add(texts(5)), add(texts(3, first=4))
    assert backlog.n_waiting_tokens == 8 * 6
    assert backlog.abandon(gone, RuntimeError("left")) == 3
    assert backlog.n_waiting_tokens == 8 * 3
    assert sum(map(len, run(backlog))) == 3
    assert_right(stays, texts(3, first=4))
    assert backlog.n_waiting_tokens == 0
    assert isinstance(gone.error, RuntimeError)


def test_a_text_that_left_is_computed_for_who_wants_it_later(backlog, add):
    backlog.abandon(add(texts(3)), RuntimeError("left"))
    again = add(texts(3))
    assert sum(map(len, run(backlog))) == 3
    assert_right(again, texts(3))


def test_a_batch_that_comes_back_undone_keeps_only_what_is_wanted(backlog, add):
    gone, stays = add(texts(2)), add(texts(2, first=3))
    batch = backlog.take(1)
    assert len(batch.ids) == 4
    assert backlog.abandon(gone, RuntimeError("left")) == 0
    backlog.give_back(batch)
    assert backlog.n_waiting_tokens == 16
    assert sum(map(len, run(backlog))) == 2
    assert_right(stays, texts(2, first=3))


def test_a_failing_text_takes_the_rest_of_its_job_along(backlog, add):
    """Given a job whose first text fails, then its others are not computed, and do not count as waiting."""
    job = add([*texts(1, n_tokens=60), *texts(20, n_tokens=30, first=50)])
    batch = backlog.take(1)
    assert len(batch.ids) == 1
    backlog.fail(batch, RuntimeError("no vector"))
    assert isinstance(job.error, RuntimeError)
    assert backlog.n_waiting_tokens == 0
    assert run(backlog) == []


def test_thousands_of_jobs_that_leave_leave_nothing_behind(backlog, add):
    first = add(texts(1))
    for n in range(2000):
        backlog.abandon(add(texts(3, first=10 + n)), RuntimeError("left"))
    (line,) = backlog._lines.values()
    assert len(line._waiting) < 10
    assert len(line.texts) == 1
    assert sum(map(len, run(backlog))) == 1
    assert_right(first, texts(1))


def test_two_jobs_of_one_batch_remember_the_same_trip(backlog, add):
    jobs = [add(texts(2, first=10 * n)) for n in range(2)]
    batch = backlog.take(1)
    batch.begin(seat=3)
    (trip,) = jobs[0].timing.trips
    assert jobs[1].timing.trips == [trip]
    assert (trip.n_texts, trip.n_tokens, trip.seat, trip.ended_s) == (4, 32, 3, None)
    answer(backlog, batch)
    for job in jobs:
        assert job.timing.begun_s == trip.begun_s <= trip.ended_s <= job.timing.ended_s


def test_who_wants_a_text_that_is_under_way_is_on_its_trip(backlog, add):
    first = add(texts(1))
    batch = backlog.take(1)
    batch.begin(seat=0)
    late = add(texts(1))
    answer(backlog, batch)
    assert late.timing.trips == first.timing.trips != []
    assert add(texts(1)).timing.trips == []


def test_a_batch_that_fails_and_its_texts_alone_are_trips_of_their_own(backlog, add):
    job = add(texts(2))
    batch = backlog.take(1)
    batch.begin(seat=0)
    backlog.fail(batch, RuntimeError("two"))
    while (alone := backlog.take(1)) is not None:
        alone.begin(seat=1)
        answer(backlog, alone)
    assert [(trip.n_texts, trip.seat) for trip in job.timing.trips] == [(2, 0), (1, 1), (1, 1)]
    assert len({trip.batch for trip in job.timing.trips}) == 3
    assert all(trip.ended_s is not None for trip in job.timing.trips)


def test_a_job_that_is_over_goes_on_no_more_trips(backlog, add):
    job = add(texts(1))
    add(texts(1))
    backlog.abandon(job, RuntimeError("gone"))
    backlog.take(1).begin(seat=0)
    assert job.timing.trips == []
    assert (job.timing.queue_s, job.timing.inference_s) == (0, 0)
