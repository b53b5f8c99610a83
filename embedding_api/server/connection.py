"""A client's connection: its socket, the request that arrives, the request in work, and what is to be sent.

Nothing here blocks. The worker's loop alone reads and closes. While a request is in work, its thread alone uses the
outbox.
"""

import contextlib
import enum
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from embedding_api.request import Request, joined
from embedding_api.server.outbox import Outbox
from embedding_api.server.parser import Parser

_RECEIVE_BYTES = 65_536
# Each call gives Python's lock away, and waits for it where threads compute: large bodies are read in large pieces.
_MAX_RECEIVE_BYTES = 2**20


class State(enum.Enum):
    """What a connection is doing."""

    ARRIVING = enum.auto()
    WORKING = enum.auto()
    WRITING = enum.auto()
    LINGERING = enum.auto()
    CLOSED = enum.auto()


class Work(NamedTuple):
    """A request that is answered now.

    Attributes:
        request: Its record.
        head: Its head as Gunicorn's parser gives it.
        n_bytes: The bytes of both that are held in memory.
    """

    request: Request
    head: Any
    n_bytes: int


class Connection:
    """One connection.

    Attributes:
        socket: The client's.
        client: The client's address.
        server: The address that the client connected to.
        state: What the connection is doing.
        parser: The request that arrives, or may arrive next.
        work: The request in work; None while there is none.
        outbox: What is to be sent.
        has_ended: True if the client will send nothing more.
        must_close: True if the connection ends with the response to the request in work.
        watched: The events that the poller waits for.
        counted: What is counted of this connection: bytes held of requests, and bytes of a response not read.
        n_discarded_bytes: Bytes that came after the last response.
    """

    def __init__(
        self, client_socket: socket.socket, client: Any, server: Any, new_parser: Callable[[Any, bytearray], Parser]
    ) -> None:
        client_socket.settimeout(0)
        self.socket = client_socket
        self.client = client
        self.server = server
        self.state = State.ARRIVING
        self.watched = 0
        self.parser = new_parser(client, bytearray())
        self._new_parser = new_parser
        self.work: Work | None = None
        self.outbox = Outbox()
        self.has_ended = False
        self.must_close = False
        self.counted = (0, 0)
        self.n_discarded_bytes = 0

    @property
    def n_held_bytes(self) -> int:
        """Bytes of requests that are held in memory, complete or not."""
        return self.parser.n_held_bytes + (self.work.n_bytes if self.work else 0)

    def receive(self) -> int:
        """Read once into the parser's buffer. Return how many bytes came, 0 at the end of the stream.

        Raises:
            BlockingIOError: There is nothing to read.
            OSError: The client is gone.
        """
        n_wanted_bytes = self.parser.n_missing_bytes or 0
        data = self.socket.recv(min(max(_RECEIVE_BYTES, n_wanted_bytes), _MAX_RECEIVE_BYTES))
        self.parser.buffer += data
        self.has_ended = not data
        return len(data)

    def begin_work(self) -> Work:
        """Put the request that has arrived into work, and make room for the next."""
        parser = self.parser
        body = parser.body
        if not isinstance(body, bytearray):
            body.seek(0)
        request = Request(parser.head.method, parser.head.path, joined(parser.head.headers), body)
        self.work = Work(request, parser.head, parser.n_head_bytes + request.n_bytes)
        self.parser = self._new_parser(self.client, parser.buffer)
        self.state = State.WORKING
        return self.work

    def require_work(self) -> Work:
        """Return the request in work; there must be one."""
        if self.work is None:
            raise RuntimeError("a connection without a request in work has none to answer; this is a bug")
        return self.work

    def end_work(self) -> None:
        """Drop the request that was in work and its body: a connection may be idle for long."""
        if self.work:
            self.work.request.close()
        self.work = None

    def send(self) -> bool:
        """Send what the socket takes. Return True if nothing is left.

        Raises:
            OSError: The client is gone.
        """
        return self.outbox.send(self.socket)

    def say_continue(self) -> None:
        """Let a client send its body that asked before."""
        if self.parser.expects_continue:
            self.parser.expects_continue = False
            self.outbox.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            # What cannot be sent now goes before the response, and a client that is gone is noticed when it is read.
            with contextlib.suppress(OSError):
                self.send()

    def drop_arriving(self) -> None:
        """Drop what has come of the next request."""
        self.parser.close()
        self.parser = self._new_parser(self.client, bytearray())

    def close(self) -> None:
        """Close the socket, and drop all that is held unless a thread still works with it."""
        is_working = self.state is State.WORKING
        self.state = State.CLOSED
        self.socket.close()
        self.drop_arriving()
        if not is_working:
            self.drop_response()

    def drop_response(self) -> None:
        """Drop the request in work and what was not sent of its response."""
        self.outbox.clear()
        self.end_work()
