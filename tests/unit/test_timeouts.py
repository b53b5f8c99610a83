"""Each has its time from when it came, and those that came first are due first."""

import math
import time

from embedding_api.server.timeouts import Deadlines
from tests.server.conftest import until


def test_those_whose_time_is_over_are_taken_once_in_their_order():
    deadlines = Deadlines(0.05)
    for item in "abc":
        deadlines.put(item)
    deadlines.drop("b")
    deadlines.drop("never there")
    deadlines.put("a")
    assert deadlines.take_due() == []
    assert deadlines.next_s() <= time.monotonic() + 0.05
    taken = []
    until(lambda: taken.extend(deadlines.take_due()) or len(taken) == 2)
    assert taken == ["c", "a"]
    assert (len(deadlines), deadlines.next_s()) == (0, math.inf)


def test_a_shorter_time_is_for_those_that_are_here_and_those_that_come():
    deadlines = Deadlines(1000)
    deadlines.put("a")
    deadlines.shorten(2000)
    assert deadlines.next_s() > time.monotonic() + 900
    deadlines.shorten(0)
    deadlines.put("b")
    assert deadlines.take_due() == ["a", "b"]
