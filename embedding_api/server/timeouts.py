"""Until when each of many connections has time."""

import math
import time
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Those for all of which the same time runs, each from when it was put here.

    Args:
        timeout_s: How long.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._ends_s: OrderedDict[T, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ends_s)

    def __contains__(self, item: object) -> bool:
        return item in self._ends_s

    def put(self, item: T) -> None:
        """Starts its time, anew if need be."""
        self._ends_s[item] = time.monotonic() + self._timeout_s
        self._ends_s.move_to_end(item)

    def drop(self, item: T) -> None:
        """Stops its time, if it runs."""
        self._ends_s.pop(item, None)

    def next_s(self) -> float:
        """When the first of them is due, on the monotonic clock; infinity if there is none."""
        return next(iter(self._ends_s.values()), math.inf)

    def first(self) -> T:
        """Whose time is over next."""
        return next(iter(self._ends_s))

    def take_due(self) -> list[T]:
        """Those whose time is over; they are here no longer."""
        due: list[T] = []
        while self._ends_s and self.next_s() <= time.monotonic():
            due.append(self._ends_s.popitem(last=False)[0])
        return due

    def shorten(self, timeout_s: float) -> None:
        """Gives no more than this time to all that are here, from now on, and to all that come."""
        if timeout_s >= self._timeout_s:
            return
        self._timeout_s = timeout_s
        latest_s = time.monotonic() + timeout_s
        for item, end_s in self._ends_s.items():
            self._ends_s[item] = min(end_s, latest_s)
