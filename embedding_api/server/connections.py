"""The connections of a worker. One thread waits for all clients at once, until they have sent, read, or gone.

A connection arrives, works, writes, and then arrives again or lingers; `Connection.state` says which.
"""

import contextlib
import logging
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any

from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER

from embedding_api.server.arrivals import Arrivals, Host
from embedding_api.server.connection import Connection, State
from embedding_api.server.parser import Parser
from embedding_api.server.waits import READ, WRITE, Wait, Waits

logger = logging.getLogger(__name__)

# Bytes of responses in a worker that their clients have not read: seven to 2,048 texts each, of 9 MB in numbers.
MAX_UNREAD_BYTES = 2**26


class Connections:
    """All connections of a worker.

    Args:
        poller: Waits for sockets. Its data for each is called with the socket.
        host: Answers the requests.
        new_parser: Makes a parser for a client's address and for bytes that have come.
        keepalive_s: Seconds for which an idle connection is kept.
        client_timeout_s: Seconds in which a client must send a request, and in which it must read a response.
        max_discarded_bytes: Bytes that a client may send after its last response.

    Attributes:
        n_open: Connections that are open.
        n_held_bytes: Bytes in memory of requests that are not answered, complete or not.
        n_unread_bytes: Bytes in memory of responses that their clients have not read.
    """

    def __init__(
        self,
        poller: selectors.BaseSelector,
        host: Host,
        new_parser: Callable[[Any, bytearray], Parser],
        *,
        keepalive_s: float,
        client_timeout_s: float,
        max_discarded_bytes: int,
    ) -> None:
        self._new_parser = new_parser
        self._client_timeout_s = client_timeout_s
        self._waits = Waits(poller, self._on_ready, keepalive_s=keepalive_s, client_timeout_s=client_timeout_s)
        self._arrivals = Arrivals(host, self._waits, self._close, max_discarded_bytes)
        self.n_open = 0
        self.n_held_bytes = 0
        self.n_unread_bytes = 0

    @property
    def n_idle(self) -> int:
        """Connections that were kept alive and have sent nothing since."""
        return self._waits.n_waiting(Wait.NEXT_REQUEST)

    def add(self, client_socket: socket.socket, client: Any, server: Any) -> None:
        """Add a new connection."""
        self.n_open += 1
        connection = Connection(client_socket, client, server, self._new_parser)
        self._waits.start(connection, Wait.FIRST_REQUEST)
        self._waits.watch(connection, READ)

    def finish(self, connection: Connection) -> None:
        """Send the response to a request in work, and go on with what came after the request."""
        self._guard(connection, self._respond)

    def refuse(self, connection: Connection) -> None:
        """Send the response to a request that no thread has worked on."""
        self._write(connection)

    def next_s(self) -> float:
        """Return when the next timeout ends, on the monotonic clock."""
        return self._waits.next_s()

    def expire(self) -> None:
        """Deal with connections whose time is over, and with clients that leave too much unread."""
        while self.n_unread_bytes > MAX_UNREAD_BYTES and self._waits.n_waiting(Wait.READER):
            self._guard(self._waits.first(Wait.READER), self._close)
        if time.monotonic() < self.next_s():
            return
        for connection, wait in self._waits.pop_expired():
            if wait is Wait.REST_OF_REQUEST:
                self._guard(connection, lambda late: self._arrivals.refuse_late(late, self._client_timeout_s))
            else:
                self._guard(connection, self._arrivals.leave if wait is Wait.RETURN else self._close)

    def wind_up(self) -> None:
        """Wait only shortly, as Gunicorn does, for clients that owe nothing: they may be sending a request already."""
        for wait in (Wait.FIRST_REQUEST, Wait.NEXT_REQUEST, Wait.CLOSE):
            self._waits.shorten(wait, STOP_KEEPALIVE_LINGER)

    def count(self, connection: Connection) -> None:
        """Count the memory that a connection holds, which may have changed."""
        n_held_bytes = 0 if connection.state is State.CLOSED else connection.n_held_bytes
        n_unread_bytes = connection.outbox.n_bytes if connection.state is State.WRITING else 0
        n_held_before, n_unread_before = connection.counted
        self.n_held_bytes += n_held_bytes - n_held_before
        self.n_unread_bytes += n_unread_bytes - n_unread_before
        connection.counted = (n_held_bytes, n_unread_bytes)

    def _on_ready(self, connection: Connection, _: Any) -> None:
        # What was closed in this turn may have been ready in it as well.
        if connection.state is not State.CLOSED:
            self._guard(connection, self._respond if connection.state is State.WRITING else self._arrivals.read)

    def _guard(self, connection: Connection, step: Callable[[Connection], None]) -> None:
        try:
            step(connection)
        except Exception:
            # One connection's fault must not end all others.
            logger.exception("a connection was closed because of an error in the server; this is a bug")
            self._close(connection)
        self.count(connection)

    def _respond(self, connection: Connection) -> None:
        self._write(connection)
        self._arrivals.advance(connection)

    def _write(self, connection: Connection) -> None:
        """Send what the client takes of a response."""
        connection.state = State.WRITING
        n_sent_before = connection.outbox.n_sent_bytes
        if self._waits.kind_of(connection) is not Wait.READER:
            self._waits.stop(connection)
        try:
            is_sent = connection.send()
        except OSError:
            self._close(connection)
            return
        if not is_sent:
            # Of bytes in memory no progress counts: a client that reads a little now and then would keep them for ever.
            n_sent = connection.outbox.n_sent_bytes if connection.outbox.is_sending_file else n_sent_before
            self._waits.start_once(connection, Wait.READER, n_sent_before, n_sent)
            self._waits.watch(connection, WRITE)
            return
        connection.end_work()
        if connection.must_close:
            self._linger(connection)
            return
        self._arrivals.wait_for_next(connection)

    def _linger(self, connection: Connection) -> None:
        """End the response and let the client close: if it still sent something, the kernel would drop the response."""
        if not connection.has_ended:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
                connection.state = State.LINGERING
                connection.drop_arriving()
                self._waits.start(connection, Wait.CLOSE)
                self._waits.watch(connection, READ)
                return
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        if connection.state is not State.CLOSED:
            self._waits.stop(connection)
            self._waits.watch(connection, 0)
            connection.close()
            self.n_open -= 1
