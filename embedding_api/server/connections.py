"""Where a worker waits for its clients, all at once and in one thread: until they have sent, read, or gone.

A connection arrives, works, writes, and arrives again or lingers; `Connection.state` says which.
"""

import contextlib
import logging
import selectors
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from gunicorn.config import Config
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER

from embedding_api.server import refusals
from embedding_api.server.connection import Connection, State
from embedding_api.server.framing import Framing, Verdict
from embedding_api.server.timeouts import Deadlines
from embedding_api.settings import Settings
from embedding_api.telemetry import metrics

logger = logging.getLogger(__name__)

# A client that has closed its sending side may still read, as `nc -N` does; but nearly all that do so are gone for
# good, and TCP tells them apart only once something is sent to them. What takes longer than this is not computed.
GONE_AFTER_S = 1.0
# A client closes when it has read its answer; one that is still sending would lose the answer if we closed on it.
LINGER_S = 5.0
# What answers may take that their clients have not read, in a worker: seven to 2,048 texts each, of 9 MB in numbers.
MAX_UNREAD_BYTES = 2**26
# What a client may send ahead while a request of its is in work.
MAX_AHEAD_BYTES = 65_536
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Host(Protocol):
    """Who takes the requests."""

    def has_room(self, n_bytes: int) -> bool:
        """Whether so many more bytes of a body may be held."""

    def take(self, connection: Connection, verdict: Verdict) -> None:
        """Works on the request in the buffer, which will not become more whole than the verdict says."""


class Reception:
    """The connections of a worker.

    Args:
        poller: What waits for sockets; what is registered is to be called with the socket.
        config: Gunicorn's.
        settings: The service's.
        host: Who takes the requests.

    Attributes:
        n_connections: Those that are open.
        n_held_bytes: Of requests that are not answered, whole or not.
        idle: Those that were kept alive, and have not sent anything since.
    """

    def __init__(self, poller: selectors.BaseSelector, config: Config, settings: Settings, host: Host) -> None:
        self._poller = poller
        self._config = config
        self._settings = settings
        self._host = host
        self.n_connections = 0
        self.n_held_bytes = 0
        self._n_unread_bytes = 0
        # In each of these a connection stands while it waits for its client; the first three are of those that arrive.
        self.idle: Deadlines[Connection] = Deadlines(config.keepalive)
        self._silent: Deadlines[Connection] = Deadlines(settings.client_timeout_s)
        self._arriving: Deadlines[Connection] = Deadlines(settings.client_timeout_s)
        self._leaving: Deadlines[Connection] = Deadlines(GONE_AFTER_S)
        self._writing: Deadlines[Connection] = Deadlines(settings.client_timeout_s)
        self._lingering: Deadlines[Connection] = Deadlines(LINGER_S)
        self._when_due: dict[Deadlines[Connection], Callable[[Connection], None]] = {
            self.idle: self._close,
            self._silent: self._close,
            self._arriving: self._refuse_late,
            self._leaving: self._leave,
            self._writing: self._close,
            self._lingering: self._close,
        }

    def admit(self, client_socket: socket.socket, client: Any, server: Any) -> None:
        """Takes in a new connection."""
        self.n_connections += 1
        connection = Connection(client_socket, client, server, self._new_framing())
        self._silent.put(connection)
        self._watch(connection, _READ)

    def answered(self, connection: Connection) -> None:
        """The thread of a request is done with it, and its answer can be sent."""
        connection.state = State.WRITING
        self._guard(connection, self._write)

    def next_s(self) -> float:
        """When somebody's time is over, on the monotonic clock."""
        return min(deadlines.next_s() for deadlines in self._when_due)

    def expire(self) -> None:
        """Deals with those whose time is over, or who have read too little too long."""
        while self._n_unread_bytes > MAX_UNREAD_BYTES and len(self._writing):
            self._guard(self._writing.first(), self._close)
        if time.monotonic() < self.next_s():
            return
        for deadlines, step in self._when_due.items():
            for connection in deadlines.take_due():
                self._guard(connection, step)

    def wind_up(self) -> None:
        """Waits only shortly for those who owe nothing: for what a client may be sending already, as Gunicorn does."""
        for deadlines in (self.idle, self._silent, self._lingering):
            deadlines.shorten(STOP_KEEPALIVE_LINGER)

    def count(self, connection: Connection) -> None:
        """Counts what is held of a connection, which may have changed."""
        n_bytes = 0 if connection.state is State.CLOSED else len(connection.buffer) + connection.n_request_bytes
        self.n_held_bytes += n_bytes - connection.n_counted_bytes
        connection.n_counted_bytes = n_bytes
        n_unread_bytes = connection.n_unsent_bytes if connection.state is State.WRITING else 0
        self._n_unread_bytes += n_unread_bytes - connection.n_unread_bytes
        connection.n_unread_bytes = n_unread_bytes

    def _new_framing(self) -> Framing:
        return Framing(self._config.limit_request_line, self._settings.max_body_bytes)

    def _watch(self, connection: Connection, events: int) -> None:
        """Waits for these events, 0 for none; what is told and not dealt with would be told again and again."""
        if events == connection.watched:
            return
        if not events:
            self._poller.unregister(connection.socket)
        else:
            tell = self._poller.modify if connection.watched else self._poller.register
            tell(connection.socket, events, partial(self._on_ready, connection))
        connection.watched = events

    def _on_ready(self, connection: Connection, _: Any) -> None:
        # What was closed in this turn may have been ready in it as well.
        if connection.state is not State.CLOSED:
            self._guard(connection, self._write if connection.state is State.WRITING else self._read)

    def _guard(self, connection: Connection, step: Callable[[Connection], None]) -> None:
        try:
            step(connection)
        except Exception:
            # One connection's fault must not end all others.
            logger.exception("a connection was given up; this is a bug")
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
            self._leaving.put(connection)
        elif len(connection.buffer) > MAX_AHEAD_BYTES:
            self._watch(connection, 0)

    def _lose(self, connection: Connection) -> None:
        """The client has reset the connection: nobody will read an answer."""
        if connection.state is not State.WORKING:
            self._close(connection)
            return
        self._watch(connection, 0)
        connection.has_ended = connection.must_close = True
        self._leaving.drop(connection)
        self._leave(connection)

    def _leave(self, connection: Connection) -> None:
        connection.sock.caller.leave()
        metrics.CLIENTS_GONE.inc()

    def _advance(self, connection: Connection) -> None:
        """Sees how far the request has come that arrives."""
        if connection.has_ended and not connection.buffer:
            self._close(connection)
            return
        # What old clients send behind a body is no request yet.
        if connection.buffer == b"\r\n" and not connection.has_ended:
            return
        framing = connection.framing
        verdict = framing.look(connection.buffer)
        # Of what no head has announced, as much as may come at once.
        n_missing_bytes = connection.n_missing_bytes or MAX_AHEAD_BYTES
        if (
            verdict is Verdict.UNDER_WAY
            and not connection.has_ended
            and (not framing.has_body or self._host.has_room(n_missing_bytes))
        ):
            if connection not in self._arriving:
                self._stop_waiting(connection)
                self._arriving.put(connection)
            self._watch(connection, _READ)
            self._encourage(connection)
            return
        self._stop_waiting(connection)
        if verdict is Verdict.WHOLE:
            self._encourage(connection)
        self._host.take(connection, verdict)
        if connection.has_ended:
            self._leaving.put(connection)

    def _stop_waiting(self, connection: Connection) -> None:
        for deadlines in (self.idle, self._silent, self._arriving):
            deadlines.drop(connection)

    def _encourage(self, connection: Connection) -> None:
        """Lets a client send its body that asked before."""
        if connection.framing.expects_continue:
            connection.framing.expects_continue = False
            connection.put(b"HTTP/1.1 100 Continue\r\n\r\n")
            # What cannot be sent now goes before the answer, and a client that is gone is noticed when it is read.
            with contextlib.suppress(OSError):
                connection.send()

    def _write(self, connection: Connection) -> None:
        """Sends what the client takes."""
        self._leaving.drop(connection)
        try:
            is_sent = connection.send()
        except OSError:
            self._close(connection)
            return
        if not is_sent:
            # Once: who reads a little now and then would keep it for ever.
            if connection not in self._writing:
                self._writing.put(connection)
            self._watch(connection, _WRITE)
            return
        self._writing.drop(connection)
        connection.end()
        if connection.must_close:
            self._linger(connection)
            return
        connection.state = State.ARRIVING
        connection.framing = self._new_framing()
        # With so much here already, what is here comes first.
        is_enough = connection.has_ended or len(connection.buffer) > MAX_AHEAD_BYTES
        self._watch(connection, 0 if is_enough else _READ)
        if connection.buffer or connection.has_ended:
            self._advance(connection)
        else:
            self.idle.put(connection)

    def _refuse_late(self, connection: Connection) -> None:
        refusals.refuse(refusals.not_arrived(self._settings.client_timeout_s), connection.put)
        connection.must_close = True
        self.answered(connection)

    def _linger(self, connection: Connection) -> None:
        """Ends the answer and lets the client close: on what it still sends, the kernel would take the answer back."""
        if not connection.has_ended:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
                connection.state = State.LINGERING
                connection.buffer.clear()
                self._lingering.put(connection)
                self._watch(connection, _READ)
                return
        self._close(connection)

    def _discard(self, connection: Connection, n_bytes: int) -> None:
        connection.buffer.clear()
        connection.n_discarded_bytes += n_bytes
        if connection.has_ended or connection.n_discarded_bytes > self._settings.max_body_bytes:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        if connection.state is State.CLOSED:
            return
        if connection.state is not State.WORKING:
            connection.end()
        connection.state = State.CLOSED
        for deadlines in self._when_due:
            deadlines.drop(connection)
        self._watch(connection, 0)
        connection.socket.close()
        self.n_connections -= 1
