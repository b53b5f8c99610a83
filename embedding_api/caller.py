"""Who waits for an answer: since when, until when, and whether still."""

import math
import threading
import time
from collections.abc import Callable

# Keys of the WSGI environment, for what the worker that holds the connection knows of a request: its Caller; and the
# error to answer it with if it would be too much, or None.
CALLER, REFUSAL = "embedding_api.caller", "embedding_api.refusal"


class Caller:
    """The client of one request, as the worker that holds its connection knows it. Safe for several threads.

    Attributes:
        arrived_s: When the request was there as a whole, on the monotonic clock.
        deadline_s: Until when it waits, on the monotonic clock; infinity if for ever.
    """

    def __init__(self) -> None:
        self.arrived_s = time.monotonic()
        self.deadline_s = math.inf
        self._lock = threading.Lock()
        self._has_left = False
        self._callbacks: list[Callable[[], None]] = []

    def remaining_s(self) -> float | None:
        """Seconds until the deadline, none below zero; None if there is no deadline."""
        return None if math.isinf(self.deadline_s) else max(0.0, self.deadline_s - time.monotonic())

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
