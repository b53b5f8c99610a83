"""A connection waits for one thing at a time. Those that wait for the same thing expire in the order of their start."""

import math
import time

from embedding_api.server.waits import Wait, Waits
from tests.server.conftest import until

READ, WRITE = Wait.REST_OF_REQUEST, Wait.READER


def new_waits(timeouts_s):
    """Return waits with these timeouts. Any different objects can stand for connections."""
    return Waits(None, None, timeouts_s)


def test_connections_whose_time_is_over_come_out_once_in_the_order_of_their_progress():
    waits = new_waits({READ: 0.05, WRITE: 1000})
    for connection in "abcd":
        waits.start(connection, READ)
    waits.stop("b")
    waits.stop("never there")
    waits.start("a", READ, n_file_bytes=2**20)
    waits.start("c", READ)
    waits.start("d", WRITE)
    assert waits.pop_expired() == []
    assert waits.next_s() <= time.monotonic() + 0.05
    assert (waits.n_waiting(READ), waits.first(READ)) == (2, "c")
    expired = []
    until(lambda: expired.extend(waits.pop_expired()) or len(expired) == 2)
    assert expired == [("c", READ), ("a", READ)]
    assert waits.next_s() > time.monotonic() + 900


def test_a_connection_waits_for_the_last_thing_that_was_started():
    waits = new_waits({READ: 1000, WRITE: 1000})
    waits.start("a", READ)
    waits.start("a", WRITE, n_file_bytes=2**20 - 1)
    assert (waits.n_waiting(READ), waits.n_waiting(WRITE)) == (0, 1)
    waits.stop("a", but=WRITE)
    assert waits.n_waiting(WRITE) == 1
    waits.stop("a", but=READ)
    assert waits.next_s() == math.inf


def test_a_shorter_timeout_holds_for_connections_that_wait_and_that_come():
    waits = new_waits({READ: 1000})
    waits.start("a", READ)
    waits.shorten(READ, 2000)
    assert waits.next_s() > time.monotonic() + 900
    waits.shorten(READ, 0)
    waits.start("b", READ)
    assert waits.pop_expired() == [("a", READ), ("b", READ)]
