"""Greenlets of a loop: each waits for its event or its time, while the loop and the others go on."""

import math
import threading
import time

import pytest

from embedding_api.server.greenlets import Greenlets
from tests.conftest import until


class Loop:
    """A loop that counts how often it was woken, and keeps what its greenlets did."""

    def __init__(self):
        self.n_wakes = 0
        self.done = []
        self.greenlets = Greenlets(self.wake)

    def wake(self):
        self.n_wakes += 1

    def start_waiter(self, name, timeout_s=None):
        """Start a greenlet that waits for an event, and return the event."""
        event = self.greenlets.new_event()
        self.greenlets.start(lambda: self.done.append((name, event.wait(timeout_s))))
        return event


@pytest.fixture
def loop():
    return Loop()


def test_greenlets_go_on_in_the_order_of_their_events_which_any_thread_sets(loop):
    first, second = loop.start_waiter("first"), loop.start_waiter("second")
    loop.greenlets.run()
    assert loop.done == []
    thread = threading.Thread(target=lambda: (second.set(), first.set()))
    thread.start()
    thread.join()
    assert loop.n_wakes == 1
    loop.greenlets.run()
    assert loop.done == [("second", True), ("first", True)]
    assert loop.greenlets.next_s() == math.inf


def test_an_event_that_is_set_in_time_is_not_waited_for(loop):
    event = loop.start_waiter("early")
    event.set()
    loop.greenlets.run()
    assert loop.done == [("early", True)]
    loop.greenlets.run()
    assert loop.greenlets.next_s() == math.inf


def test_a_greenlet_goes_on_when_its_time_is_over_and_a_later_event_changes_nothing(loop):
    late, never = loop.start_waiter("late", 0.01), loop.start_waiter("never", 60)
    at_once = loop.start_waiter("at once", 0)
    loop.greenlets.run()
    assert loop.done == [("at once", False)]
    assert time.monotonic() - 1 < loop.greenlets.next_s() <= time.monotonic() + 0.01
    time.sleep(0.02)
    loop.greenlets.run()
    assert loop.done[1:] == [("late", False)]
    for event in (late, at_once):
        event.set()
    loop.greenlets.run()
    assert loop.done[2:] == []
    never.set()
    loop.greenlets.run()
    assert loop.done[2:] == [("never", True)]
    assert loop.greenlets.next_s() == math.inf


def test_what_becomes_ready_in_a_turn_waits_for_the_next_one(loop):
    loop.greenlets.start(lambda: loop.start_waiter("inner", 0))
    loop.greenlets.run()
    assert loop.done == []
    assert loop.greenlets.next_s() == 0
    loop.greenlets.run()
    assert loop.done == [("inner", False)]


def test_a_turn_of_the_loop_is_short_and_the_last_one_runs_all(loop):
    for number in range(20):
        loop.greenlets.start(lambda number=number: (time.sleep(2e-3), loop.done.append(number)))
    loop.greenlets.run()
    assert 0 < len(loop.done) < 20
    assert loop.greenlets.next_s() == 0
    loop.greenlets.run_all()
    assert loop.done == list(range(20))


def test_an_error_costs_no_other_greenlet(loop, caplog):
    loop.greenlets.start(lambda: 1 / 0)
    loop.start_waiter("other", 0)
    loop.greenlets.run()
    assert loop.done == [("other", False)]
    assert "this is a bug" in caplog.text


def test_the_handler_of_a_signal_to_the_process_can_end_the_loop(loop):
    def end():
        raise SystemExit

    loop.greenlets.start(end)
    with pytest.raises(SystemExit):
        loop.greenlets.run()


def test_deadlines_of_those_that_were_answered_are_forgotten(loop):
    """Given one that waits for a short time, then those with later deadlines leave nothing behind."""
    loop.start_waiter("first", 60)
    for _ in range(1000):
        event = loop.start_waiter("later", 600)
        loop.greenlets.run()
        event.set()
        loop.greenlets.run()
    assert len(loop.greenlets._ends) < 100


def test_no_wake_is_lost_when_events_are_set_during_a_turn(loop):
    """Given a thread that sets events one after another, then the loop, which runs only when woken, sees all."""
    n_events = 2000
    events = [loop.start_waiter(number) for number in range(n_events)]
    while loop.greenlets.next_s() == 0:
        loop.greenlets.run()
    thread = threading.Thread(target=lambda: [event.set() for event in events])
    thread.start()
    n_seen = 0
    while len(loop.done) < n_events:
        until(lambda n_seen=n_seen: loop.n_wakes > n_seen or loop.greenlets.next_s() == 0, deadline_s=10)
        n_seen = loop.n_wakes
        loop.greenlets.run()
    thread.join()
    assert [name for name, _ in loop.done] == list(range(n_events))
