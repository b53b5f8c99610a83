"""Greenlets of a worker's loop: short requests run in them. While one waits for its vectors, the loop goes on.

A thread for each request needs four changes of threads; docs/decisions/0015 has what greenlets save.
"""

import heapq
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable

from greenlet import GreenletExit, getcurrent, greenlet

logger = logging.getLogger(__name__)

# Seconds of greenlets in one turn of the loop, after which it looks at its other events.
_MAX_TURN_S = 5e-3
# Deadlines that may be kept although their greenlets no longer wait.
_MIN_ENDS = 64


class GreenletEvent:
    """What a greenlet waits for. It stands where a thread has a `threading.Event`.

    Args:
        greenlets: The loop's.

    Attributes:
        is_set: True once `set` was called.
    """

    __slots__ = ("_greenlets", "_waiter", "is_set")

    def __init__(self, greenlets: "Greenlets") -> None:
        self.is_set = False
        self._greenlets = greenlets
        self._waiter: greenlet | None = None

    def set(self) -> None:
        """Let the greenlet go on. Any thread may call it."""
        self.is_set = True
        self._greenlets.resume(self)

    def wait(self, timeout_s: float | None) -> bool:
        """Let the loop go on until the event is set, but no longer than `timeout_s`. Return True if it is set."""
        if not self.is_set and timeout_s != 0:
            self._waiter = getcurrent()
            self._greenlets.park(self, timeout_s)
            self._waiter = None
        return self.is_set

    def go_on(self) -> None:
        """Switch to the greenlet, if it still waits."""
        if self._waiter is not None:
            self._waiter.switch()


class Greenlets:
    """The greenlets of a loop. Only the loop's thread may use it, but for `resume`.

    Args:
        wake: Ends the loop's wait for events. Any thread may call it.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._loop = getcurrent()
        self._ready: deque[Callable[[], object]] = deque()
        self._is_woken = False
        # A heap of deadlines, each with the event of a greenlet that goes on then without it.
        self._ends: list[tuple[float, int, GreenletEvent]] = []
        self._n_parked = 0
        self._numbers = itertools.count()

    def start(self, call: Callable[[], None]) -> None:
        """Run a call in a greenlet of its own, when the loop calls `run`."""
        self._ready.append(greenlet(lambda: _run(call), self._loop).switch)

    def new_event(self) -> GreenletEvent:
        """Return an event for which one greenlet may wait."""
        return GreenletEvent(self)

    def park(self, event: GreenletEvent, timeout_s: float | None) -> None:
        """Let the loop go on in place of the current greenlet, until its event is set or the time is over."""
        if timeout_s is not None:
            if len(self._ends) > _MIN_ENDS + 2 * self._n_parked:
                self._ends = [end for end in self._ends if not end[2].is_set]
                heapq.heapify(self._ends)
            heapq.heappush(self._ends, (time.monotonic() + timeout_s, next(self._numbers), event))
        self._n_parked += 1
        try:
            self._loop.switch()
        finally:
            self._n_parked -= 1

    def resume(self, event: GreenletEvent) -> None:
        """Let the greenlet that waits for this event go on. Any thread may call it."""
        self._ready.append(event.go_on)
        # One wake is enough for all that go on in the loop's next turn.
        if not self._is_woken:
            self._is_woken = True
            self._wake()

    def next_s(self) -> float:
        """Return when `run` must be called next, on the monotonic clock; infinity if only `wake` can tell."""
        if self._ready:
            return 0.0
        return self._ends[0][0] if self._ends else math.inf

    def run(self) -> None:
        """Run each greenlet that is new, has its event, or has waited long enough, until it waits again or ends.

        Raises:
            SystemExit: A signal to the process came meanwhile, whose handler ends the process.
        """
        # A greenlet that becomes ready from here on either is run now or wakes the loop again.
        self._is_woken = False
        now_s = time.monotonic()
        while self._ends and (self._ends[0][2].is_set or self._ends[0][0] <= now_s):
            self._ready.append(heapq.heappop(self._ends)[2].go_on)
        # Those that become ready meanwhile are run in the next turn, so that the loop sees its other events.
        for _ in range(len(self._ready)):
            self._ready.popleft()()
            if time.monotonic() > now_s + _MAX_TURN_S:
                return

    def run_all(self) -> None:
        """Run greenlets until each has ended or waits, however long that takes, at the end of the loop."""
        while self._ready:
            self.run()


def _run(call: Callable[[], None]) -> None:
    try:
        call()
    except (SystemExit, GreenletExit):
        raise
    except BaseException:
        # It would end the loop, and with it all other requests.
        logger.exception("a request ended with an error in the server; this is a bug")
