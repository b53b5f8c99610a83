"""A request's deadline is its earliest one. A callback for the client's leaving is called once."""

import math

import pytest

from embedding_api.errors import DeadlineExceededError
from embedding_api.request import TIMEOUT_HEADERS, Caller, joined


@pytest.mark.parametrize("limits", [[(2, "A"), (0.5, "B")], [(0.5, "B"), (2, "A")], [(math.inf, "A"), (0.5, "B")]])
def test_the_earliest_deadline_holds_and_the_message_names_its_limit(limits):
    caller = Caller()
    for timeout_s, limit in limits:
        caller.wait_at_most(timeout_s, limit)
    assert caller.deadline_s == caller.arrived_s + 0.5
    message = caller.deadline_error().message
    assert message.startswith("the request was not answered within the 0.5 s of B;")
    assert message.endswith(" or raise B")


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, 60),
        ({TIMEOUT_HEADERS[0]: "0.5"}, 0.5),
        ({TIMEOUT_HEADERS[0]: "600", TIMEOUT_HEADERS[1]: "7"}, 7),
        ({TIMEOUT_HEADERS[0]: "soon", TIMEOUT_HEADERS[1]: "-1"}, 60),
        ({TIMEOUT_HEADERS[0]: "nan", TIMEOUT_HEADERS[1]: "0"}, 60),
    ],
)
def test_a_client_waits_no_longer_than_the_server_and_than_it_says(headers, wait_s):
    caller = Caller()
    caller.limit_wait(60, headers.get)
    assert caller.deadline_s == caller.arrived_s + wait_s


def test_a_client_has_time_until_its_deadline_and_for_ever_without_one():
    caller = Caller()
    caller.require_time()
    assert caller.remaining_s() is None
    caller.arrived_s -= 2
    caller.wait_at_most(1, "A")
    assert caller.remaining_s() == 0
    with pytest.raises(DeadlineExceededError, match="within the 1 s of A"):
        caller.require_time()


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


def test_headers_of_one_name_are_joined_as_wsgi_joins_them():
    assert joined([("ACCEPT", "a"), ("X-ID", "1"), ("ACCEPT", "b")]) == {"accept": "a,b", "x-id": "1"}
