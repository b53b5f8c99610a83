"""Who waits for an answer is told of once, whenever they leave."""

from embedding_api.caller import Caller


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
