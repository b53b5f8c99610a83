"""Requests that arrive: bytes are read and parsed, and the host gets each request that is complete or faulty."""

from collections.abc import Callable
from typing import Protocol

from gunicorn.http.errors import ParseException

from embedding_api.errors import RequestTimeoutError, ServiceError
from embedding_api.server.connection import Connection, State
from embedding_api.server.parser import Parser
from embedding_api.server.waits import READ, Wait, Waits
from embedding_api.telemetry import metrics

# Bytes that a client may send ahead while a request of its is in work.
MAX_AHEAD_BYTES = 65_536


class Host(Protocol):
    """Answers the requests."""

    def refusal_of_rest(self, parser: Parser) -> ServiceError | None:
        """Return why the rest of a request must not come; None if it may."""

    def accept_request(self, connection: Connection, error: ServiceError | ParseException | None) -> None:
        """Answer the request that has arrived, or refuse what has arrived of it if there is an error."""


class Arrivals:
    """Reads from all connections of a worker.

    Args:
        host: Answers the requests.
        waits: What the worker waits for.
        close: Closes a connection.
        max_discarded_bytes: Bytes that a client may send after its last response.
    """

    def __init__(self, host: Host, waits: Waits, close: Callable[[Connection], None], max_discarded_bytes: int) -> None:
        self._host = host
        self._waits = waits
        self._close = close
        self._max_discarded_bytes = max_discarded_bytes

    def read(self, connection: Connection) -> None:
        """Read once, and deal with what has come."""
        try:
            n_bytes = connection.receive()
        except BlockingIOError:
            return
        except OSError:
            self._lose(connection)
            return
        if connection.has_ended:
            self._waits.watch(connection, 0)
        if connection.state is State.LINGERING:
            self._discard(connection, n_bytes)
        elif connection.state is State.ARRIVING:
            self.advance(connection)
        elif connection.has_ended:
            self._waits.start(connection, Wait.RETURN)
        elif len(connection.parser.buffer) > MAX_AHEAD_BYTES:
            self._waits.watch(connection, 0)

    def wait_for_next(self, connection: Connection) -> None:
        """Wait for the next request, after a response was sent."""
        connection.state = State.ARRIVING
        self._waits.start(connection, Wait.NEXT_REQUEST)
        # With so much here already, what is here comes first.
        is_enough = connection.has_ended or len(connection.parser.buffer) > MAX_AHEAD_BYTES
        self._waits.watch(connection, 0 if is_enough else READ)

    def advance(self, connection: Connection) -> None:
        """Go through the requests that have arrived, as far as they can be answered at once."""
        while connection.state is State.ARRIVING and self._accept_next(connection):
            pass

    def leave(self, connection: Connection) -> None:
        """Let those who work on the request know that its client is gone."""
        if connection.work:
            connection.work.request.caller.leave()
            metrics.CLIENTS_GONE.inc()

    def refuse_late(self, connection: Connection, timeout_s: float) -> None:
        """Refuse a request that was not complete in time."""
        message = f"the request was incomplete {timeout_s:g} s after its first byte; send it again"
        self._host.accept_request(connection, RequestTimeoutError(message))

    def _lose(self, connection: Connection) -> None:
        """Give up a connection that the client has reset: nobody will read a response."""
        if connection.state is not State.WORKING:
            self._close(connection)
            return
        self._waits.watch(connection, 0)
        connection.has_ended = connection.must_close = True
        self._waits.stop(connection)
        self.leave(connection)

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
            n_body_bytes = parser.n_body_bytes if parser.is_to_file else n_body_bytes_before
            self._waits.start_once(connection, Wait.REST_OF_REQUEST, n_body_bytes_before, n_body_bytes)
            self._waits.watch(connection, READ)
            connection.say_continue()
            return False
        self._waits.stop(connection)
        if error is None:
            connection.say_continue()
        self._host.accept_request(connection, error)
        if connection.has_ended and connection.state is State.WORKING:
            self._waits.start(connection, Wait.RETURN)
        return True

    def _discard(self, connection: Connection, n_bytes: int) -> None:
        connection.parser.buffer.clear()
        connection.n_discarded_bytes += n_bytes
        if connection.has_ended or connection.n_discarded_bytes > self._max_discarded_bytes:
            self._close(connection)
