"""An item waits for one thing at a time, and those that wait for the same expire in the order in which they began."""

import math
import time

from embedding_api.server.timeouts import Timeouts
from tests.server.conftest import until


def test_items_whose_time_is_over_come_out_once_and_in_their_order():
    timeouts = Timeouts({"read": 0.05, "write": 1000})
    for item in "abcd":
        timeouts.start(item, "read")
    timeouts.stop("b")
    timeouts.stop("never there")
    timeouts.start("a", "read")
    timeouts.start("d", "write")
    assert timeouts.pop_expired() == []
    assert timeouts.next_s() <= time.monotonic() + 0.05
    assert (timeouts.n_waiting("read"), timeouts.first("read")) == (2, "c")
    expired = []
    until(lambda: expired.extend(timeouts.pop_expired()) or len(expired) == 2)
    assert expired == [("c", "read"), ("a", "read")]
    assert timeouts.next_s() > time.monotonic() + 900


def test_an_item_waits_for_the_last_thing_that_was_started():
    timeouts = Timeouts({"read": 1000, "write": 1000})
    timeouts.start("a", "read")
    timeouts.start("a", "write")
    assert (timeouts.kind_of("a"), timeouts.n_waiting("read"), timeouts.n_waiting("write")) == ("write", 0, 1)
    timeouts.stop("a")
    assert (timeouts.kind_of("a"), timeouts.next_s()) == (None, math.inf)


def test_a_shorter_timeout_holds_for_items_that_wait_and_items_that_come():
    timeouts = Timeouts({"read": 1000})
    timeouts.start("a", "read")
    timeouts.shorten("read", 2000)
    assert timeouts.next_s() > time.monotonic() + 900
    timeouts.shorten("read", 0)
    timeouts.start("b", "read")
    assert timeouts.pop_expired() == [("a", "read"), ("b", "read")]
