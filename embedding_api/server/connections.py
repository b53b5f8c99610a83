"""The connections of a worker. One thread waits for all clients at once, until they have sent, read, or gone.

A connection arrives, works, writes, and then arrives again or lingers; `Connection.state` says which.
"""

import contextlib
import logging
import selectors
import socket
from collections.abc import Callable
from typing import Any

from gunicorn.http.errors import ParseException
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER

from embedding_api.errors import RequestTimeoutError, ServiceError
from embedding_api.server.connection import Connection, State
from embedding_api.server.parser import Parser
from embedding_api.server.waits import READ, WRITE, Wait, Waits

logger = logging.getLogger(__name__)

# Bytes that a client may send ahead while its request is in progress.
MAX_AHEAD_BYTES = 65_536
# Bytes of responses in a worker that their clients have not read: seven responses of 9 MB, to 2,048 texts each.
MAX_UNREAD_BYTES = 2**26
# A client that has closed its sending side may still read, as `nc -N` does. But nearly all that do so are gone for
# good, and TCP tells them apart only once something is sent to them. After this time their texts are dropped.
_GONE_AFTER_S = 1.0
# A client closes when it has read its response; one that still sends would lose the response if we closed on it.
_LINGER_S = 5.0


class Connections:
    """All connections of a worker.

    The counts of bytes are right after each public method except `write`. Only `accept_request` may call that: it runs
    in a step of the connection, which counts at its end.

    Args:
        poller: Waits for sockets. Its data for each is called with the socket.
        new_parser: Makes the parser of a client from its address.
        refusal_of_rest: Returns why the rest of a request must not come; None if it may.
        accept_request: Called with a connection whose request has arrived, or with an error if it must be refused.
        keepalive_s: Seconds for which an idle connection is kept.
        client_timeout_s: Seconds in which a client must send a request, and in which it must read a response.

    Attributes:
        waits: What they wait for.
        n_open: Connections that are open.
        n_held_bytes: Bytes in memory of requests that are not answered, complete or not.
        n_unread_bytes: Bytes in memory of responses that their clients have not read.
    """

    def __init__(
        self,
        poller: selectors.BaseSelector,
        new_parser: Callable[[Any], Parser],
        refusal_of_rest: Callable[[Parser], ServiceError | None],
        accept_request: Callable[[Connection, ServiceError | ParseException | None], None],
        *,
        keepalive_s: float,
        client_timeout_s: float,
    ) -> None:
        self._new_parser = new_parser
        self._refusal_of_rest = refusal_of_rest
        self._accept_request = accept_request
        self._client_timeout_s = client_timeout_s
        timeouts_s = dict.fromkeys(Wait, client_timeout_s)
        timeouts_s |= {Wait.NEXT_REQUEST: keepalive_s, Wait.HALF_CLOSED: _GONE_AFTER_S, Wait.CLOSE: _LINGER_S}
        self.waits = Waits(poller, self._on_ready, timeouts_s)
        self.n_open = 0
        self.n_held_bytes = 0
        self.n_unread_bytes = 0

    def add(self, client_socket: socket.socket, client: Any, server: Any) -> None:
        """Add a new connection."""
        self.n_open += 1
        connection = Connection(client_socket, (client, server), self._new_parser(client))
        self.waits.start(connection, Wait.FIRST_REQUEST)
        self.waits.watch(connection, READ)

    def expire(self) -> None:
        """Close connections whose time is over, or refuse their requests; close those that leave too much unread."""
        while self.n_unread_bytes > MAX_UNREAD_BYTES and self.waits.n_waiting(Wait.READER):
            self._guard(self.waits.first(Wait.READER), self._close)
        steps = {Wait.REST_OF_REQUEST: self._refuse_late, Wait.HALF_CLOSED: Connection.leave}
        for connection, wait in self.waits.pop_expired():
            self._guard(connection, steps.get(wait, self._close))

    def wind_up(self) -> None:
        """Wait only shortly, as Gunicorn does, on idle connections, whose clients may be sending a request already."""
        for wait in (Wait.FIRST_REQUEST, Wait.NEXT_REQUEST, Wait.CLOSE):
            self.waits.shorten(wait, STOP_KEEPALIVE_LINGER)

    def finish(self, connection: Connection) -> None:
        """Send the response to a request in progress, and go on with what came after the request."""
        if connection.state is State.CLOSED:
            connection.drop_work()
        else:
            self._guard(connection, self._respond)

    def _on_ready(self, connection: Connection, _: Any) -> None:
        # What was closed in this turn may have been ready in it as well.
        if connection.state is not State.CLOSED:
            self._guard(connection, self._respond if connection.state is State.WRITING else self._read)

    def _guard(self, connection: Connection, step: Callable[[Connection], None]) -> None:
        """Do one step of a connection, and count the memory that it holds afterwards."""
        try:
            step(connection)
        except Exception:
            # One connection's fault must not end all others.
            logger.exception("a connection was closed because of an error in the server; this is a bug")
            self._close(connection)
        n_held_bytes = 0 if connection.state is State.CLOSED else connection.n_held_bytes
        n_unread_bytes = connection.outbox.n_bytes if connection.state is State.WRITING else 0
        n_held_before, n_unread_before = connection.counted
        self.n_held_bytes += n_held_bytes - n_held_before
        self.n_unread_bytes += n_unread_bytes - n_unread_before
        connection.counted = (n_held_bytes, n_unread_bytes)

    def _read(self, connection: Connection) -> None:
        """Read once, and deal with what has come."""
        try:
            connection.receive()
        except BlockingIOError:
            return
        except OSError:
            # The client has reset the connection. Nobody will read a response.
            if connection.state is State.WORKING:
                connection.has_ended = connection.must_close = True
                self.waits.watch(connection, 0)
                self.waits.stop(connection)
                connection.leave()
            else:
                self._close(connection)
            return
        if connection.has_ended:
            self.waits.watch(connection, 0)
        if connection.state is State.LINGERING:
            connection.parser.buffer.clear()
            if connection.has_ended:
                self._close(connection)
        elif connection.state is State.ARRIVING:
            self._advance(connection)
        elif connection.has_ended:
            self.waits.start(connection, Wait.HALF_CLOSED)
        elif len(connection.parser.buffer) > MAX_AHEAD_BYTES:
            self.waits.watch(connection, 0)

    def _advance(self, connection: Connection) -> None:
        """Go through the requests that have arrived, as far as they can be answered at once."""
        while connection.state is State.ARRIVING and self._accept_next(connection):
            pass

    def _accept_next(self, connection: Connection) -> bool:
        """Accept the next request. Return False if more of it must come."""
        parser = connection.parser
        if not parser.has_begun:
            if connection.has_ended:
                self._close(connection)
            return False
        error: ServiceError | ParseException | None = None
        try:
            is_complete = parser.parse(has_ended=connection.has_ended)
            if not is_complete:
                error = self._refusal_of_rest(parser)
        except (ServiceError, ParseException) as failure:
            is_complete, error = False, failure
        if error is None:
            connection.say_continue()
            if not is_complete:
                n_file_bytes = parser.n_body_bytes if parser.is_to_file else 0
                self.waits.start(connection, Wait.REST_OF_REQUEST, n_file_bytes)
                self.waits.watch(connection, READ)
                return False
        self.waits.stop(connection)
        self._accept_request(connection, error)
        if connection.has_ended and connection.state is State.WORKING:
            self.waits.start(connection, Wait.HALF_CLOSED)
        return True

    def _refuse_late(self, connection: Connection) -> None:
        message = f"the request was incomplete {self._client_timeout_s:g} s after its first byte; send it again"
        self._accept_request(connection, RequestTimeoutError(message))

    def _respond(self, connection: Connection) -> None:
        self.write(connection)
        self._advance(connection)

    def write(self, connection: Connection) -> None:
        """Send what the socket takes of a response. After all of it, wait for the next request or for the close."""
        connection.state = State.WRITING
        self.waits.stop(connection, but=Wait.READER)
        try:
            is_sent = connection.send()
        except OSError:
            self._close(connection)
            return
        if not is_sent:
            # Of bytes in memory no progress counts: a client that reads a little now and then would keep them for ever.
            n_file_bytes = connection.outbox.n_sent_bytes if connection.outbox.is_sending_file else 0
            self.waits.start(connection, Wait.READER, n_file_bytes)
            self.waits.watch(connection, WRITE)
            return
        connection.drop_work()
        if connection.must_close:
            self._linger(connection)
            return
        connection.state = State.ARRIVING
        self.waits.start(connection, Wait.NEXT_REQUEST)
        # What has been read already comes first.
        is_enough = connection.has_ended or len(connection.parser.buffer) > MAX_AHEAD_BYTES
        self.waits.watch(connection, 0 if is_enough else READ)

    def _linger(self, connection: Connection) -> None:
        """Let the client close first: if it sent something to a closed socket, the kernel would drop the response."""
        if not connection.has_ended:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
                connection.state = State.LINGERING
                connection.parser.close()
                self.waits.start(connection, Wait.CLOSE)
                self.waits.watch(connection, READ)
                return
        self._close(connection)

    def _close(self, connection: Connection) -> None:
        if connection.state is not State.CLOSED:
            self.waits.stop(connection)
            self.waits.watch(connection, 0)
            connection.close()
            self.n_open -= 1
