"""What a worker waits for on each connection: events of its socket, and a timeout."""

import enum
import math
import selectors
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from embedding_api.server.connection import Connection

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

# A file may take longer than the timeout, if at least so many of its bytes pass within each.
_PROGRESS_BYTES = 2**20


class Wait(enum.Enum):
    """Why a connection has a timeout."""

    FIRST_REQUEST = enum.auto()
    NEXT_REQUEST = enum.auto()
    REST_OF_REQUEST = enum.auto()
    # The client has closed its sending side while its request is in progress.
    HALF_CLOSED = enum.auto()
    READER = enum.auto()
    CLOSE = enum.auto()


class Waits:
    """The timeout of each connection, one at a time, and the events that the poller watches.

    Connections that wait for the same share a timeout, and so expire in the order in which they began to wait.

    Args:
        poller: Waits for sockets. Its data for each is called with the socket.
        on_ready: Called with a connection when one of its events has come.
        timeouts_s: Seconds that a connection may wait, by what it waits for.
    """

    def __init__(
        self,
        poller: selectors.BaseSelector,
        on_ready: Callable[[Connection, Any], None],
        timeouts_s: Mapping[Wait, float],
    ) -> None:
        self._poller = poller
        self._on_ready = on_ready
        self._timeouts_s = dict(timeouts_s)
        self._ends_s: dict[Wait, OrderedDict[Connection, float]] = {wait: OrderedDict() for wait in timeouts_s}
        self._reasons: dict[Connection, tuple[Wait, int]] = {}

    def watch(self, connection: Connection, events: int) -> None:
        """Wait for these events, 0 for none. An event that is watched and not handled comes again and again."""
        if events == connection.watched:
            return
        if not events:
            self._poller.unregister(connection.socket)
        else:
            change = self._poller.modify if connection.watched else self._poller.register
            change(connection.socket, events, partial(self._on_ready, connection))
        connection.watched = events

    def start(self, connection: Connection, wait: Wait, n_file_bytes: int = 0) -> None:
        """Start a timeout of a connection, in place of any other that it has, unless it runs already.

        Args:
            connection: The connection that waits.
            wait: Why.
            n_file_bytes: Bytes of a file that have passed. With enough of them the timeout starts again.
        """
        reason = (wait, n_file_bytes // _PROGRESS_BYTES)
        if self._reasons.get(connection) != reason:
            self.stop(connection)
            self._reasons[connection] = reason
            self._ends_s[wait][connection] = time.monotonic() + self._timeouts_s[wait]

    def stop(self, connection: Connection, *, but: Wait | None = None) -> None:
        """Stop the timeout of a connection, if it has one and does not wait for what `but` says."""
        reason = self._reasons.get(connection)
        if reason is not None and reason[0] is not but:
            del self._reasons[connection], self._ends_s[reason[0]][connection]

    def n_waiting(self, wait: Wait) -> int:
        """Return how many connections wait for this."""
        return len(self._ends_s[wait])

    def first(self, wait: Wait) -> Connection:
        """Return the connection that expires next of those that wait for this; there must be one."""
        return next(iter(self._ends_s[wait]))

    def next_s(self) -> float:
        """Return when the next timeout ends, on the monotonic clock; infinity if none runs."""
        return min(next(iter(ends_s.values()), math.inf) for ends_s in self._ends_s.values())

    def pop_expired(self) -> list[tuple[Connection, Wait]]:
        """Stop the timeouts that are over. Return each connection with what it waited for."""
        now_s = time.monotonic()
        expired: list[tuple[Connection, Wait]] = []
        for wait, ends_s in self._ends_s.items():
            while ends_s and next(iter(ends_s.values())) <= now_s:
                expired.append((self.first(wait), wait))
                self.stop(self.first(wait))
        return expired

    def shorten(self, wait: Wait, timeout_s: float) -> None:
        """Let all connections, also those that come later, wait for this no longer than `timeout_s`."""
        self._timeouts_s[wait] = min(timeout_s, self._timeouts_s[wait])
        latest_s = time.monotonic() + timeout_s
        for connection, end_s in self._ends_s[wait].items():
            self._ends_s[wait][connection] = min(end_s, latest_s)
