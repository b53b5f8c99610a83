"""What each of many connections waits for, and how long."""

import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Timeouts(Generic[K, T]):
    """Items that wait, each for one kind of event at a time. Those of a kind share a timeout, ordered by expiry.

    Args:
        timeouts_s: Seconds, by kind.
    """

    def __init__(self, timeouts_s: Mapping[K, float]) -> None:
        self._timeouts_s = dict(timeouts_s)
        self._ends_s: dict[K, OrderedDict[T, float]] = {kind: OrderedDict() for kind in timeouts_s}
        self._kinds: dict[T, K] = {}

    def start(self, item: T, kind: K) -> None:
        """Start the timeout of an item, in place of any other that it has."""
        self.stop(item)
        self._kinds[item] = kind
        self._ends_s[kind][item] = time.monotonic() + self._timeouts_s[kind]

    def stop(self, item: T) -> None:
        """Stop the timeout of an item, if it has one."""
        kind = self._kinds.pop(item, None)
        if kind is not None:
            del self._ends_s[kind][item]

    def kind_of(self, item: T) -> K | None:
        """Return what an item waits for; None if nothing."""
        return self._kinds.get(item)

    def n_waiting(self, kind: K) -> int:
        """Return how many items wait for this."""
        return len(self._ends_s[kind])

    def first(self, kind: K) -> T:
        """Return the item of a kind that expires next; there must be one."""
        return next(iter(self._ends_s[kind]))

    def next_s(self) -> float:
        """Return when the next item expires, on the monotonic clock; infinity if none waits."""
        return min(next(iter(ends_s.values()), math.inf) for ends_s in self._ends_s.values())

    def pop_expired(self) -> list[tuple[T, K]]:
        """Remove the items whose time is over, and return each with what it waited for."""
        now_s = time.monotonic()
        expired: list[tuple[T, K]] = []
        for kind, ends_s in self._ends_s.items():
            while ends_s and next(iter(ends_s.values())) <= now_s:
                item, _ = ends_s.popitem(last=False)
                del self._kinds[item]
                expired.append((item, kind))
        return expired

    def shorten(self, kind: K, timeout_s: float) -> None:
        """Give the items of a kind no more than this time from now on, and those that come no more either."""
        if timeout_s >= self._timeouts_s[kind]:
            return
        self._timeouts_s[kind] = timeout_s
        latest_s = time.monotonic() + timeout_s
        for item, end_s in self._ends_s[kind].items():
            self._ends_s[kind][item] = min(end_s, latest_s)
