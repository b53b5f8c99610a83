"""Who waits for an answer: since when, until when, and whether still."""

import math
import threading
import time
from collections.abc import Callable

# Keys of the WSGI environment, for what the worker that holds the connection knows of a request: its Caller; and the
# error to answer it with if it would be too much, or None.
CALLER, REFUSAL = "embedding_api.caller", "embedding_api.refusal"

# Bytes of a request's head: more than any proxy lets through. Gunicorn alone would hold 800 KB for every client.
MAX_HEAD_BYTES = 65_536


class Caller:
    """The client of one request, as the worker that holds its connection knows it. Safe for several threads.

    Attributes:
        arrived_s: When the request was there as a whole, on the monotonic clock.
        deadline_s: Until when it waits, on the monotonic clock; infinity if for ever.
    """

    def __init__(self) -> None:
        self.arrived_s = time.monotonic()
        self.deadline_s = math.inf
        self._limit = "the deadline"
        self._lock = threading.Lock()
        self._has_left = False
        self._callbacks: list[Callable[[], None]] = []

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, none below zero; None if there is no deadline."""
        return None if math.isinf(self.deadline_s) else max(0.0, self.deadline_s - time.monotonic())

    def wait_at_most(self, timeout_s: float, limit: str) -> None:
        """Sets the deadline to `timeout_s` after the request arrived, unless it is earlier already.

        Args:
            timeout_s: Seconds; infinity for no limit.
            limit: What sets this time, for the message to a request that exceeds it.
        """
        if (deadline_s := self.arrived_s + timeout_s) < self.deadline_s:
            self.deadline_s, self._limit = deadline_s, limit

    def deadline_message(self) -> str:
        """What a request that exceeded its deadline is told: the limit that ended it, and the cure."""
        return (
            f"the request was not answered within the {self.deadline_s - self.arrived_s:g} s of {self._limit}; "
            f"send fewer texts at once, or raise {self._limit}"
        )

    def leave(self) -> None:
        """The connection is gone; to be called once, by whoever notices."""
        with self._lock:
            self._has_left = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def when_left(self, callback: Callable[[], None]) -> None:
        """Calls back, from the thread that notices, when the client leaves; at once if it already has."""
        with self._lock:
            if not self._has_left:
                self._callbacks.append(callback)
                return
        callback()
