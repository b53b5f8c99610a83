"""What a worker waits for on each connection: events of its socket, and the end of a time."""

import enum
import selectors
from collections.abc import Callable
from functools import partial
from typing import Any

from embedding_api.server.connection import Connection
from embedding_api.server.timeouts import Timeouts

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

# A client that has closed its sending side may still read, as `nc -N` does. But nearly all that do so are gone for
# good, and TCP tells them apart only once something is sent to them. A response that takes longer is not computed.
_GONE_AFTER_S = 1.0
# A client closes when it has read its response; one that still sends would lose the response if we closed on it.
_LINGER_S = 5.0
# A file may take longer than a timeout as long as so many of its bytes pass within each timeout.
_PROGRESS_BYTES = 2**20


class Wait(enum.Enum):
    """Why a time runs for a connection."""

    FIRST_REQUEST = enum.auto()
    NEXT_REQUEST = enum.auto()
    REST_OF_REQUEST = enum.auto()
    # The client has closed its sending side while its request is in work.
    RETURN = enum.auto()
    READER = enum.auto()
    CLOSE = enum.auto()


class Waits(Timeouts[Wait, Connection]):
    """The timeouts of connections, and the events that the poller watches.

    Args:
        poller: Waits for sockets. Its data for each is called with the socket.
        on_ready: Called with a connection when one of its events has come.
        keepalive_s: Seconds for which an idle connection is kept.
        client_timeout_s: Seconds in which a client must send a request, and in which it must read a response.
    """

    def __init__(
        self,
        poller: selectors.BaseSelector,
        on_ready: Callable[[Connection, Any], None],
        *,
        keepalive_s: float,
        client_timeout_s: float,
    ) -> None:
        super().__init__(
            {
                Wait.FIRST_REQUEST: client_timeout_s,
                Wait.NEXT_REQUEST: keepalive_s,
                Wait.REST_OF_REQUEST: client_timeout_s,
                Wait.RETURN: _GONE_AFTER_S,
                Wait.READER: client_timeout_s,
                Wait.CLOSE: _LINGER_S,
            }
        )
        self._poller = poller
        self._on_ready = on_ready

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

    def start_once(self, connection: Connection, wait: Wait, n_bytes_before: int, n_bytes: int) -> None:
        """Start a timeout unless it runs; start it again if a file has made progress.

        Args:
            connection: The connection that waits.
            wait: Why.
            n_bytes_before: Bytes of a file that had passed before.
            n_bytes: Bytes that have passed; equal to those before if there is no file.
        """
        has_progressed = n_bytes_before // _PROGRESS_BYTES != n_bytes // _PROGRESS_BYTES
        if has_progressed or self.kind_of(connection) is not wait:
            self.start(connection, wait)
