"""The connections of a worker. One thread waits for all clients at once, until they have sent, read, or gone.

A connection arrives, works, writes, and then arrives again or lingers; `Connection.state` says which.
"""

import contextlib
import enum
import logging
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from gunicorn.http.errors import ParseException
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER

from embedding_api.errors import RequestTimeoutError, ServiceError
from embedding_api.server.connection import Connection, State
from embedding_api.server.parser import Parser
from embedding_api.server.timeouts import Timeouts
from embedding_api.telemetry import metrics

logger = logging.getLogger(__name__)

# A client that has closed its sending side may still read, as `nc -N` does. But nearly all that do so are gone for
# good, and TCP tells them apart only once something is sent to them. What takes longer than this is not computed.
GONE_AFTER_S = 1.0
# A client closes when it has read its response; one that still sends would lose the response if we closed on it.
LINGER_S = 5.0
# Bytes of responses in a worker that their clients have not read: seven to 2,048 texts each, of 9 MB in numbers.
MAX_UNREAD_BYTES = 2**26
# Bytes that a client may send ahead while a request of its is in work.
MAX_AHEAD_BYTES = 65_536
# A file may take longer than a timeout as long as so many of its bytes pass within each timeout.
PROGRESS_BYTES = 2**20
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Wait(enum.Enum):
    """What the worker waits for on a connection."""

    FIRST_REQUEST = enum.auto()
    NEXT_REQUEST = enum.auto()
    REST_OF_REQUEST = enum.auto()
    # The client closed its sending side while its request is in work.
    RETURN = enum.auto()
    READER = enum.auto()
    CLOSE = enum.auto()


class Host(Protocol):
    """Answers the requests."""

    def refusal_of_rest(self, parser: Parser) -> ServiceError | None:
        """Return why the rest of a request must not come; None if it may."""

    def accept_request(self, connection: Connection, error: ServiceError | ParseException | None) -> None:
        """Answer the request that has arrived, or refuse what has arrived of it if there is an error."""


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
        self._poller = poller
        self._host = host
        self._new_parser = new_parser
        self._client_timeout_s = client_timeout_s
        self._max_discarded_bytes = max_discarded_bytes
        self.n_open = 0
        self.n_held_bytes = 0
        self._n_unread_bytes = 0
        self._timeouts: Timeouts[Wait, Connection] = Timeouts(
            {
                Wait.FIRST_REQUEST: client_timeout_s,
                Wait.NEXT_REQUEST: keepalive_s,
                Wait.REST_OF_REQUEST: client_timeout_s,
                Wait.RETURN: GONE_AFTER_S,
                Wait.READER: client_timeout_s,
                Wait.CLOSE: LINGER_S,
            }
        )

    @property
    def n_idle(self) -> int:
        """Connections that were kept alive and have sent nothing since."""
        return self._timeouts.n_waiting(Wait.NEXT_REQUEST)

    def add(self, client_socket: socket.socket, client: Any, server: Any) -> None:
        """Add a new connection."""
        self.n_open += 1
        connection = Connection(client_socket, client, server, self._new_parser)
        self._timeouts.start(connection, Wait.FIRST_REQUEST)
        self._watch(connection, _READ)

    def finish(self, connection: Connection) -> None:
        """Send the response to a request in work, and go on with what came after the request."""
        self._guard(connection, self._respond)

    def refuse(self, connection: Connection) -> None:
        """Send the response to a request that never was in work. Only `Host.accept_request` may call this."""
        self._write(connection)

    def next_s(self) -> float:
        """Return when the next timeout ends, on the monotonic clock."""
        return self._timeouts.next_s()

    def expire(self) -> None:
        """Deal with connections whose time is over, and with clients that leave too much unread."""
        while self._n_unread_bytes > MAX_UNREAD_BYTES and self._timeouts.n_waiting(Wait.READER):
            self._guard(self._timeouts.first(Wait.READER), self._close)
        if time.monotonic() < self.next_s():
            return
        steps = {Wait.REST_OF_REQUEST: self._refuse_late, Wait.RETURN: self._leave}
        for connection, wait in self._timeouts.pop_expired():
            self._guard(connection, steps.get(wait, self._close))

    def wind_up(self) -> None:
        """Wait only shortly, as Gunicorn does, for clients that owe nothing: they may be sending a request already."""
        for wait in (Wait.FIRST_REQUEST, Wait.NEXT_REQUEST, Wait.CLOSE):
            self._timeouts.shorten(wait, STOP_KEEPALIVE_LINGER)

    def count(self, connection: Connection) -> None:
        """Count the memory that a connection holds, which may have changed."""
        is_open = connection.state is not State.CLOSED
        n_held_bytes = connection.n_held_bytes if is_open else 0
        n_unread_bytes = connection.outbox.n_bytes if connection.state is State.WRITING else 0
        n_held_before, n_unread_before = connection.counted
        self.n_held_bytes += n_held_bytes - n_held_before
        self._n_unread_bytes += n_unread_bytes - n_unread_before
        connection.counted = (n_held_bytes, n_unread_bytes)

    def _watch(self, connection: Connection, events: int) -> None:
        """Wait for these events, 0 for none. An event that is watched and not dealt with comes again and again."""
        if events == connection.watched:
            return
        if not events:
            self._poller.unregister(connection.socket)
        else:
            change = self._poller.modify if connection.watched else self._poller.register
            change(connection.socket, events, partial(self._on_ready, connection))
        connection.watched = events

    def _on_ready(self, connection: Connection, _: Any) -> None:
        # What was closed in this turn may have been ready in it as well.
        if connection.state is not State.CLOSED:
            self._guard(connection, self._respond if connection.state is State.WRITING else self._read)

    def _guard(self, connection: Connection, step: Callable[[Connection], None]) -> None:
        try:
            step(connection)
        except Exception:
            # One connection's fault must not end all others.
            logger.exception("a connection was closed because of an error in the server; this is a bug")
            self._close(connection)
        self.count(connection)

    def _read(self, connection: Connection) -> None:
        try:
            n_bytes = connection.receive()
        except BlockingIOError:
            return
        except OSError:
            self._lose(connection)
            return
        if connection.has_ended:
            self._watch(connection, 0)
        if connection.state is State.LINGERING:
            self._discard(connection, n_bytes)
        elif connection.state is State.ARRIVING:
            self._advance(connection)
        elif connection.has_ended:
            self._timeouts.start(connection, Wait.RETURN)
        elif len(connection.parser.buffer) > MAX_AHEAD_BYTES:
            self._watch(connection, 0)

    def _lose(self, connection: Connection) -> None:
        """Give up a connection that the client has reset: nobody will read a response."""
        if connection.state is not State.WORKING:
            self._close(connection)
            return
        self._watch(connection, 0)
        connection.has_ended = connection.must_close = True
        self._timeouts.stop(connection)
        self._leave(connection)

    def _leave(self, connection: Connection) -> None:
        if connection.work:
            connection.work.request.caller.leave()
            metrics.CLIENTS_GONE.inc()

    def _advance(self, connection: Connection) -> None:
        """Go through the requests that have arrived, as far as they can be answered at once."""
        while connection.state is State.ARRIVING and self._accept_next(connection):
            pass

    def _accept_next(self, connection: Connection) -> bool:
        """Give the next request to the host. Return False if more of it must come."""
        parser = connection.parser
        if not parser.has_begun:
            if connection.has_ended:
                self._close(connection)
            return False
        n_body_bytes_before = parser.n_body_bytes
        error: ServiceError | ParseException | None = None
        try:
            is_complete = parser.parse(has_ended=connection.has_ended)
            if not is_complete:
                error = self._host.refusal_of_rest(parser)
        except (ServiceError, ParseException) as failure:
            is_complete, error = False, failure
        if not is_complete and error is None:
            self._wait_for_rest(connection, n_body_bytes_before)
            return False
        self._timeouts.stop(connection)
        if error is None:
            connection.say_continue()
        self._host.accept_request(connection, error)
        if connection.has_ended and connection.state is State.WORKING:
            self._timeouts.start(connection, Wait.RETURN)
        return True

    def _wait_for_rest(self, connection: Connection, n_body_bytes_before: int) -> None:
        parser = connection.parser
        has_progressed = parser.is_to_file and _passed(n_body_bytes_before, parser.n_body_bytes)
        if has_progressed or self._timeouts.kind_of(connection) is not Wait.REST_OF_REQUEST:
            self._timeouts.start(connection, Wait.REST_OF_REQUEST)
        self._watch(connection, _READ)
        connection.say_continue()

    def _respond(self, connection: Connection) -> None:
        self._write(connection)
        self._advance(connection)

    def _write(self, connection: Connection) -> None:
        """Send what the client takes of a response."""
        connection.state = State.WRITING
        outbox = connection.outbox
        n_sent_bytes_before = outbox.n_sent_bytes
        if self._timeouts.kind_of(connection) is not Wait.READER:
            self._timeouts.stop(connection)
        try:
            is_sent = connection.send()
        except OSError:
            self._close(connection)
            return
        if not is_sent:
            has_progressed = outbox.is_sending_file and _passed(n_sent_bytes_before, outbox.n_sent_bytes)
            # Otherwise once: a client that reads a little now and then would keep it for ever.
            if has_progressed or self._timeouts.kind_of(connection) is not Wait.READER:
                self._timeouts.start(connection, Wait.READER)
            self._watch(connection, _WRITE)
            return
        connection.end_work()
        if connection.must_close:
            self._linger(connection)
            return
        connection.state = State.ARRIVING
        self._timeouts.start(connection, Wait.NEXT_REQUEST)
        # With so much here already, what is here comes first.
        is_enough = connection.has_ended or len(connection.parser.buffer) > MAX_AHEAD_BYTES
        self._watch(connection, 0 if is_enough else _READ)

    def _refuse_late(self, connection: Connection) -> None:
        message = f"the request was incomplete {self._client_timeout_s:g} s after its first byte; send it again"
        self._host.accept_request(connection, RequestTimeoutError(message))

    def _linger(self, connection: Connection) -> None:
        """End the response and let the client close: if it still sent something, the kernel would drop the response."""
        if not connection.has_ended:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
                connection.state = State.LINGERING
                connection.drop_arriving()
                self._timeouts.start(connection, Wait.CLOSE)
                self._watch(connection, _READ)
                return
        self._close(connection)

    def _discard(self, connection: Connection, n_bytes: int) -> None:
        connection.parser.buffer.clear()
        connection.n_discarded_bytes += n_bytes
        if connection.has_ended or connection.n_discarded_bytes > self._max_discarded_bytes:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        if connection.state is not State.CLOSED:
            self._timeouts.stop(connection)
            self._watch(connection, 0)
            connection.close()
            self.n_open -= 1


def _passed(n_before: int, n_after: int) -> bool:
    return n_before // PROGRESS_BYTES != n_after // PROGRESS_BYTES
