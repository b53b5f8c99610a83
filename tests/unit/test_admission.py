"""The number of waiting tokens in all workers, and the time after which a refused client should try again."""

import pytest

from embedding_api.engine.scheduling.admission import Admission, Limits
from embedding_api.engine.scheduling.board import BYTES_PER_SEAT, Board
from embedding_api.errors import OverloadedError


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def board():
    return Board(memoryview(bytearray(2 * BYTES_PER_SEAT)))


@pytest.fixture
def seats(board):
    return [board.take_seat(), board.take_seat()]


@pytest.fixture
def asked(board, clock):
    return Admission(board, Limits(n_tokens=1000, n_bytes=5000, tokens_per_s=100), clock)


def test_what_waits_in_all_workers_counts(asked, seats):
    asked.require_room()
    seats[0].publish_waiting(600)
    asked.require_room()
    seats[1].publish_waiting(400)
    with pytest.raises(OverloadedError, match=r"1000 tokens wait already, and the limit .* is 1000"):
        asked.require_room()


def test_what_arrives_makes_it_full_but_does_not_refuse_what_came_before(asked, seats):
    seats[0].publish_waiting(600)
    seats[1].publish_arriving(400, 0)
    assert asked.is_full()
    asked.require_room()


def test_bytes_are_counted_over_all_workers(asked, seats):
    assert asked.has_room(5000)
    seats[0].publish_arriving(0, 3000)
    seats[1].publish_arriving(0, 1000)
    assert asked.has_room(1000)
    assert not asked.has_room(1001)


def test_a_worker_that_is_gone_holds_nothing(asked, seats):
    seats[0].publish_waiting(1000)
    seats[0].publish_arriving(500, 5000)
    seats[0].leave()
    assert not asked.is_full()
    assert asked.has_room(5000)


def test_before_anything_is_measured_the_rate_is_that_of_the_start(asked, seats, clock):
    seats[0].publish_waiting(1000)
    assert asked.overloaded().headers["Retry-After"] == "10"


def test_the_time_to_stay_away_follows_the_rate_at_which_waiting_texts_are_answered(asked, seats, clock):
    seats[0].publish_waiting(1000)
    for _ in range(20):
        assert asked.is_full()
        clock.now_s += 1
        seats[1].count_answered(500)
    assert asked.overloaded().headers["Retry-After"] == "2"


def test_time_in_which_nothing_waited_is_not_counted_as_slow(asked, seats, clock):
    seats[0].publish_waiting(10)
    asked.require_room()
    clock.now_s += 1
    seats[0].publish_waiting(0)
    asked.require_room()
    clock.now_s += 1000
    seats[0].publish_waiting(1000)
    asked.is_full()
    clock.now_s += 2
    seats[0].count_answered(1000)
    assert asked.overloaded().headers["Retry-After"] == "2"


@pytest.mark.parametrize(("waiting", "retry_after_s"), [(1, 1), (10**9, 60)])
def test_the_time_to_stay_away_is_a_whole_number_of_seconds_that_clients_bear(asked, seats, waiting, retry_after_s):
    seats[0].publish_waiting(waiting)
    assert asked.overloaded().headers["Retry-After"] == str(retry_after_s)
