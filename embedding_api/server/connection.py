"""A client's connection: what has come of a request, and what is still to be sent. Nothing here blocks.

The worker's loop alone reads and closes. While a request is in work, its thread reads the bytes that were taken out of
the buffer for it, and writes into an `Answer`.
"""

import enum
import socket
from typing import Any

from gunicorn.config import Config
from gunicorn.http.parser import RequestParser

from embedding_api.errors import ServiceError
from embedding_api.request import Caller
from embedding_api.server.framing import Framing

_RECEIVE_BYTES = 65_536
# Each call gives Python's lock away, and waits for it where threads compute: large bodies are read in large pieces.
_MAX_RECEIVE_BYTES = 2**20
# The kernel takes no more than 1024 pieces at once.
_MAX_PIECES = 64


class State(enum.Enum):
    """What a connection is about."""

    ARRIVING = enum.auto()
    WORKING = enum.auto()
    WRITING = enum.auto()
    LINGERING = enum.auto()
    CLOSED = enum.auto()


class Received:
    """The bytes of one request, which Gunicorn's parser reads as from a socket.

    Args:
        request: What came of it.
        at_end: What the parser meets if it wants more; None for the end of a stream.
    """

    def __init__(self, request: bytearray, at_end: Exception | None) -> None:
        self._request = memoryview(request)
        self._position = 0
        self._at_end = at_end
        self._has_run_dry = False

    @property
    def is_read_exactly(self) -> bool:
        """Whether its reader wanted all of it, and no more."""
        return self._position == len(self._request) and not self._has_run_dry

    def recv(self, n_bytes: int) -> bytes:
        """The next bytes, at most so many."""
        piece = bytes(self._request[self._position : self._position + n_bytes])
        self._position += len(piece)
        if not piece:
            self._has_run_dry = True
            if self._at_end is not None:
                raise self._at_end
        return piece


class Answer:
    """What a thread has in the place of its client's socket: it may write, and never waits.

    Attributes:
        caller: Who waits for it.
        refusal: What to answer in the place of what was asked for, or None.
        pieces: What was written.
    """

    def __init__(self, refusal: ServiceError | None) -> None:
        self.caller = Caller()
        self.refusal = refusal
        self.pieces: list[bytes | memoryview] = []

    def sendall(self, piece: bytes) -> None:
        """Adds to what will be sent."""
        self.pieces.append(piece)

    def recv(self, _n_bytes: int) -> bytes:
        """The end of the stream: Gunicorn reads until then before it closes, which the loop does better."""
        return b""

    def _leave_to_the_loop(self, *_: Any) -> None:
        """What else Gunicorn does to a socket."""

    setblocking = settimeout = shutdown = close = _leave_to_the_loop


class Connection:
    """One connection. It has what `ThreadWorker.handle` wants of Gunicorn's own kind.

    Attributes:
        socket: The client's.
        client: Its address.
        server: The address that it came to.
        state: What it is about.
        watched: The events that the poller is told to wait for.
        buffer: What has come, and is not part of a request in work.
        framing: How far the request in the buffer has come.
        has_ended: Whether the client will send nothing more.
        must_close: Whether the connection ends with the answer to the request in work.
        holds_thread: Whether that request counts among those for which there are threads.
        n_request_bytes: Of that request, until it is answered.
        n_counted_bytes: What is counted of this connection in what the worker holds.
        n_unread_bytes: What is counted of it in what clients have not read.
        n_discarded_bytes: What came after the last answer.
        sock: The answer to the request in work.
        parser: Gunicorn's, for the request in work.
    """

    # Neither a handshake nor HTTP/2 is left to do.
    initialized, is_http2 = True, False
    sock: Answer
    parser: RequestParser
    _received: Received

    def __init__(self, client_socket: socket.socket, client: Any, server: Any, framing: Framing) -> None:
        client_socket.settimeout(0)
        self.socket = client_socket
        self.client = client
        self.server = server
        self.state = State.ARRIVING
        self.watched = 0
        self.buffer = bytearray()
        self.framing = framing
        self.has_ended = False
        self.must_close = False
        self.holds_thread = False
        self.n_request_bytes = 0
        self.n_counted_bytes = 0
        self.n_unread_bytes = 0
        self.n_discarded_bytes = 0
        self._unsent: list[bytes | memoryview] = []

    def init(self) -> None:
        """See `initialized`."""

    @property
    def n_body_bytes(self) -> int:
        """Of the request in work."""
        return self.n_request_bytes - self.framing.n_head_bytes

    @property
    def n_missing_bytes(self) -> int:
        """Of the request in the buffer, as far as its head tells."""
        return max(0, self.framing.n_bytes - len(self.buffer))

    @property
    def n_unsent_bytes(self) -> int:
        """Of the answer."""
        return sum(map(len, self._unsent))

    @property
    def parser_agrees(self) -> bool:
        """Whether Gunicorn's parser found the request's end where it was cut; if not, what follows is anybody's."""
        return self._received.is_read_exactly and not self.parser.unreader.take_buffered()

    def receive(self) -> int:
        """Reads once into the buffer; how many bytes, 0 at the end of the stream.

        Raises:
            BlockingIOError: There is nothing to read.
            OSError: The client is gone.
        """
        n_wanted_bytes = self.n_missing_bytes if self.state is State.ARRIVING else 0
        piece = self.socket.recv(min(max(_RECEIVE_BYTES, n_wanted_bytes), _MAX_RECEIVE_BYTES))
        self.buffer += piece
        self.has_ended = not piece
        return len(piece)

    def begin(
        self, config: Config, refusal: ServiceError | None, *, is_whole: bool = True, at_end: Exception | None = None
    ) -> None:
        """Takes a request out of the buffer, all that is there if it is not whole, and prepares its work."""
        n_bytes = self.framing.n_bytes if is_whole else len(self.buffer)
        if n_bytes == len(self.buffer):
            request, self.buffer = self.buffer, bytearray()
        else:
            request = self.buffer[:n_bytes]
            del self.buffer[:n_bytes]
        self.state = State.WORKING
        self.n_request_bytes = n_bytes
        self.sock = Answer(refusal)
        self._received = Received(request, at_end)
        self.parser = RequestParser(config, self._received, self.client)

    def end(self) -> None:
        """Lets go of the request that was in work, and of its answer: a connection may be idle for long."""
        if self.n_request_bytes:
            self.n_request_bytes = 0
            del self.sock, self.parser, self._received

    def put(self, *pieces: bytes | memoryview) -> None:
        """Adds to what is to be sent."""
        self._unsent += pieces

    def send(self) -> bool:
        """Sends what the socket takes; whether nothing is left.

        Raises:
            OSError: The client is gone.
        """
        try:
            while self._unsent:
                n_sent_bytes = self.socket.sendmsg(self._unsent[:_MAX_PIECES])
                while self._unsent and n_sent_bytes >= len(self._unsent[0]):
                    n_sent_bytes -= len(self._unsent.pop(0))
                if n_sent_bytes:
                    self._unsent[0] = memoryview(self._unsent[0])[n_sent_bytes:]
        except BlockingIOError:
            return False
        return True
