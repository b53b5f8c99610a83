"""A connection of the driver: raw bytes of one HTTP/1.1 request out, and of its response in."""

import re
import socket
from collections.abc import Iterator

Address = tuple[str, int]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Connection:
    """A connection with at most one request under way.

    Attributes:
        socket: Non-blocking; the driver waits for it.
        requests: The requests that it sends one after another, with their numbers.
        number: Number of the request under way; -1 for requests of the background.
        started: When that request's first byte was sent, by `time.perf_counter`.
        chunks: Bytes of the response so far.
        closes: True if the server closes the connection after this response.
    """

    __slots__ = ("_address", "_n_missing", "_unsent", "chunks", "closes", "number", "requests", "socket", "started")

    def __init__(
        self, address: Address, requests: Iterator[tuple[int, bytes]], connected: socket.socket | None = None
    ) -> None:
        self._address = address
        self.socket = connect(address) if connected is None else connected
        self.requests = requests
        self.number = -1
        self.started = 0.0
        self.closes = False
        self.begin(b"")

    def begin(self, request: bytes) -> None:
        """Prepare to send a request and to receive its response."""
        self._unsent = memoryview(request)
        self.chunks: list[bytes] = []
        self._n_missing = -1  # bytes of the response; -1 until its head is complete

    def reconnect(self) -> None:
        """Replace the socket, which the server closes."""
        self.socket.close()
        self.socket, self.closes = connect(self._address), False

    def send(self) -> bool:
        """Send as much as the kernel accepts; return True if the request is sent completely."""
        try:
            n_sent = self.socket.send(self._unsent)
        except BlockingIOError:
            n_sent = 0
        self._unsent = self._unsent[n_sent:]
        return not self._unsent

    def receive(self, buffer: memoryview) -> bool:
        """Receive the available bytes by way of a buffer; return True if the response is complete.

        Raises:
            RuntimeError: The server closed the connection, or sent no Content-Length.
        """
        n_bytes = self.socket.recv_into(buffer)
        chunk = bytes(buffer[:n_bytes])
        if not chunk:
            raise RuntimeError(f"the server closed a connection in mid-response, after {b''.join(self.chunks)[:300]!r}")
        self.chunks.append(chunk)
        if self._n_missing >= 0:
            self._n_missing -= len(chunk)
            return self._n_missing <= 0
        received = chunk if len(self.chunks) == 1 else b"".join(self.chunks)
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return False
        length = _LENGTH.search(received, 0, end)
        if length is None:
            raise RuntimeError(f"a response without Content-Length: {received[:300]!r}")
        self.closes = _CLOSES.search(received, 0, end) is not None
        self._n_missing = end + 4 + int(length[1]) - len(received)
        return self._n_missing <= 0


def connect(address: Address) -> socket.socket:
    """Return a new connection that does not block."""
    connection = socket.create_connection(address, timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(0)
    return connection
