"""A client waits until its earliest deadline, and whoever asked is called once when it leaves."""

import math

import pytest

from embedding_api.request import Caller


@pytest.mark.parametrize("limits", [[(2, "A"), (0.5, "B")], [(0.5, "B"), (2, "A")], [(math.inf, "A"), (0.5, "B")]])
def test_the_earliest_deadline_holds_and_its_limit_is_told(limits):
    caller = Caller()
    for timeout_s, limit in limits:
        caller.wait_at_most(timeout_s, limit)
    assert caller.deadline_s == caller.arrived_s + 0.5
    assert caller.deadline_error().message.startswith("the request was not answered within the 0.5 s of B;")
    assert caller.deadline_error().message.endswith(" or raise B")


def test_whoever_asked_before_is_called_when_the_client_leaves():
    caller, left = Caller(), []
    caller.when_left(lambda: left.append("a"))
    caller.when_left(lambda: left.append("b"))
    assert left == []
    caller.leave()
    assert left == ["a", "b"]


def test_whoever_asks_after_the_client_left_is_called_at_once():
    caller, left = Caller(), []
    caller.leave()
    caller.when_left(lambda: left.append("a"))
    assert left == ["a"]
