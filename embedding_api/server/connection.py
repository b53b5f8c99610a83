"""A client's connection: its socket, the request that arrives, the request in progress, and what is to be sent.

Nothing here blocks. Only the worker's loop reads and closes. While a request is in progress, only the thread or
greenlet that answers it uses the outbox.
"""

import contextlib
import enum
import socket
from typing import Any

from embedding_api.request import Request, joined
from embedding_api.server.outbox import Outbox
from embedding_api.server.parser import Parser
from embedding_api.telemetry import metrics

_RECEIVE_BYTES = 65_536
# Each call releases Python's lock, and may wait for it while threads compute. Large pieces need few calls.
_MAX_RECEIVE_BYTES = 2**20


class State(enum.Enum):
    """What happens on a connection."""

    ARRIVING = enum.auto()
    WORKING = enum.auto()
    WRITING = enum.auto()
    LINGERING = enum.auto()
    CLOSED = enum.auto()


class Connection:
    """One connection.

    Args:
        client_socket: The client's.
        addresses: The client's, and the one that the client connected to.
        parser: For the requests of this connection.

    Attributes:
        socket: See above.
        addresses: See above.
        parser: The request that arrives, or may arrive next.
        state: What happens on the connection.
        work: The request in progress; None while there is none.
        outbox: What is to be sent.
        has_ended: True if the client will send nothing more.
        must_close: True if the connection ends with the response to the request in progress.
        watched: The events that the poller waits for.
        counted: What is counted of this connection: bytes held of requests, and bytes of a response not read.
    """

    def __init__(self, client_socket: socket.socket, addresses: tuple[Any, Any], parser: Parser) -> None:
        client_socket.settimeout(0)
        self.socket = client_socket
        self.addresses = addresses
        self.parser = parser
        self.state = State.ARRIVING
        self.work: Request | None = None
        self.outbox = Outbox()
        self.has_ended = False
        self.must_close = False
        self.watched = 0
        self.counted = (0, 0)

    @property
    def n_held_bytes(self) -> int:
        """Bytes of requests that are held in memory, complete or not."""
        return self.parser.n_held_bytes + (self.work.n_head_bytes + self.work.n_body_bytes if self.work else 0)

    def receive(self) -> None:
        """Read once into the parser's buffer, and note the end of the stream.

        Raises:
            BlockingIOError: There is nothing to read.
            OSError: The client is gone.
        """
        n_wanted_bytes = self.parser.n_missing_bytes or 0
        data = self.socket.recv(min(max(_RECEIVE_BYTES, n_wanted_bytes), _MAX_RECEIVE_BYTES))
        self.parser.buffer += data
        self.has_ended = not data

    def begin_work(self) -> Request:
        """Return the request that has arrived, which is in progress now, and make room for the next."""
        parser = self.parser
        parser.body.seek(0)
        n_body_bytes = 0 if parser.is_to_file else parser.n_body_bytes
        self.work = Request(joined(parser.head.headers), parser.body, parser.head, parser.n_head_bytes, n_body_bytes)
        parser.begin_next()
        self.state = State.WORKING
        return self.work

    def leave(self) -> None:
        """Tell those who work on the request that its client is gone."""
        if self.work:
            self.work.caller.leave()
            metrics.CLIENTS_GONE.inc()

    def send(self) -> bool:
        """Send what the socket takes. Return True if nothing is left.

        Raises:
            OSError: The client is gone.
        """
        return self.outbox.send(self.socket)

    def say_continue(self) -> None:
        """Let a client send its body, if it asked for permission (`Expect: 100-continue`)."""
        if self.parser.expects_continue:
            self.parser.expects_continue = False
            self.outbox.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            # What cannot be sent now goes before the response, and a client that is gone is noticed when it is read.
            with contextlib.suppress(OSError):
                self.send()

    def close(self) -> None:
        """Close the socket, and drop all that is held unless a request is still in progress."""
        is_working = self.state is State.WORKING
        self.state = State.CLOSED
        self.socket.close()
        self.parser.close()
        if not is_working:
            self.drop_work()

    def drop_work(self) -> None:
        """Drop the request in progress, its body, and what was not sent of its response."""
        self.outbox.clear()
        if self.work and self.work.body:
            self.work.body.close()
        self.work = None
