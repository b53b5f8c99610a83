"""Drives a server over HTTP from one thread, as cheaply as Python can: it runs on the cores that it measures.

Requests are bytes before the clock starts and answers stay bytes until it has stopped; in between there is a loop over
raw sockets that knows as much of HTTP as the contestants speak. What it costs is measured in every round.
"""

import collections
import gc
import re
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Address = tuple[str, int]

_STALLED_S = 180
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_READ_BYTES = 1 << 20


class Answer(NamedTuple):
    """What came back.

    Attributes:
        number: Of the request, from 0.
        latency_s: From the first byte sent to the last received.
        status: Of HTTP.
    """

    number: int
    latency_s: float
    status: int
    body: bytes


class Drive(NamedTuple):
    """What it took to get some answers.

    Attributes:
        elapsed_s: From the first request to the last answer.
        client_cpu_s: What of this the driver itself computed for, background included.
        answers: In the order in which they came.
        n_background: How many requests of the background were answered meanwhile.
    """

    elapsed_s: float
    client_cpu_s: float
    answers: list[Answer]
    n_background: int


class Background(NamedTuple):
    """Requests that keep a server busy, over and over, while others are measured.

    Attributes:
        requests: In turn.
        n_connections: On which there is always one on its way.
        lead_s: For how long, before those that are measured begin.
    """

    requests: Sequence[bytes]
    n_connections: int
    lead_s: float


def post(path: str, body: bytes, *, key: str = "") -> bytes:
    """A request's bytes, with a key if there is one."""
    head = [f"POST {path} HTTP/1.1", "Host: bench", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    if key:
        head.append(f"Authorization: Bearer {key}")
    return "\r\n".join((*head, "", "")).encode() + body


def drive(
    address: Address,
    requests: Sequence[bytes],
    n_connections: int,
    *,
    limit_s: float = float("inf"),
    background: Background | None = None,
) -> Drive:
    """Sends all requests over so many connections, each the next one as soon as it has its answer.

    Args:
        address: Where the server listens.
        requests: As `post` makes them.
        n_connections: How many are on their way at once.
        limit_s: After so long no further request begins.
        background: What keeps the server busy meanwhile.

    Raises:
        RuntimeError: An answer broke off, or none came for minutes.
    """
    loop = _Loop(address)
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        if background is not None:
            loop.open(background.n_connections, _endlessly(background.requests))
            loop.run(until=time.perf_counter() + background.lead_s)
        n_before = loop.n_background
        queue = collections.deque(enumerate(requests))
        mine = loop.open(n_connections, _until(queue, time.perf_counter() + limit_s), begin=False)
        cpu_s, started = time.thread_time(), time.perf_counter()
        loop.begin(mine)
        loop.run()
        elapsed_s, cpu_s = time.perf_counter() - started, time.thread_time() - cpu_s
        return Drive(elapsed_s, cpu_s, loop.answers, loop.n_background - n_before)
    finally:
        loop.close()
        if was_collecting:
            gc.enable()


def _endlessly(requests: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    while True:
        yield from ((-1, request) for request in requests)


def _until(queue: "collections.deque[tuple[int, bytes]]", deadline: float) -> Iterator[tuple[int, bytes]]:
    while queue and time.perf_counter() < deadline:
        yield queue.popleft()


class _Connection:
    """A connection with at most one request on its way. A number of -1 is of the background."""

    __slots__ = ("chunks", "closes", "n_missing", "number", "requests", "socket", "started", "unsent")

    def __init__(self, address: Address, requests: Iterator[tuple[int, bytes]]) -> None:
        self.socket = _connect(address)
        self.requests = requests
        self.number = -1
        self.started = 0.0
        self.unsent = memoryview(b"")
        self.chunks: list[bytes] = []
        self.n_missing = -1  # bytes of the answer; -1 while its head is not there
        self.closes = False

    def send(self) -> bool:
        """Sends what the kernel takes; whether that was all."""
        try:
            n_sent = self.socket.send(self.unsent)
        except BlockingIOError:
            n_sent = 0
        self.unsent = self.unsent[n_sent:]
        return not self.unsent

    def receive(self, buffer: memoryview) -> bool:
        """Takes what has come, by way of a buffer; whether the answer is complete."""
        n_bytes = self.socket.recv_into(buffer)
        chunk = bytes(buffer[:n_bytes])
        if not chunk:
            raise RuntimeError(f"the server closed a connection in mid-answer, after {b''.join(self.chunks)[:300]!r}")
        self.chunks.append(chunk)
        if self.n_missing >= 0:
            self.n_missing -= len(chunk)
            return self.n_missing <= 0
        received = chunk if len(self.chunks) == 1 else b"".join(self.chunks)
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return False
        length = _LENGTH.search(received, 0, end)
        if length is None:
            raise RuntimeError(f"an answer without Content-Length: {received[:300]!r}")
        self.closes = _CLOSES.search(received, 0, end) is not None
        self.n_missing = end + 4 + int(length[1]) - len(received)
        return self.n_missing <= 0


def _connect(address: Address) -> socket.socket:
    connection = socket.create_connection(address, timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(0)
    return connection


class _Loop:
    """All connections of one drive."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._selector = selectors.DefaultSelector()
        self._connections: list[_Connection] = []
        self._n_open = 0
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._done: list[tuple[int, float, list[bytes]]] = []
        self.n_background = 0

    @property
    def answers(self) -> list[Answer]:
        """Those that are measured, taken apart."""
        return [_answer(number, latency_s, b"".join(chunks)) for number, latency_s, chunks in self._done]

    def open(
        self, n_connections: int, requests: Iterator[tuple[int, bytes]], *, begin: bool = True
    ) -> list[_Connection]:
        """Connects, and sends first requests if told so."""
        opened = [_Connection(self._address, requests) for _ in range(n_connections)]
        self._connections += opened
        for connection in opened:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        if begin:
            self.begin(opened)
        return opened

    def begin(self, connections: Sequence[_Connection]) -> None:
        """Sends each connection's first request."""
        for connection in connections:
            self._next(connection)

    def run(self, until: float = float("inf")) -> None:
        """Sends and receives until a time, or until all that is measured is answered."""
        while self._n_open if until == float("inf") else time.perf_counter() < until:
            events = self._selector.select(min(_STALLED_S, max(0, until - time.perf_counter())))
            if not events and until == float("inf"):
                raise RuntimeError(f"the server did not answer for {_STALLED_S} s")
            for key, mask in events:
                connection: _Connection = key.data
                if mask & selectors.EVENT_WRITE:
                    if connection.send():
                        self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
                elif connection.receive(self._buffer):
                    self._answered(connection)

    def close(self) -> None:
        """Closes all connections."""
        for connection in self._connections:
            connection.socket.close()
        self._selector.close()

    def _answered(self, connection: _Connection) -> None:
        latency_s = time.perf_counter() - connection.started
        if connection.number < 0:
            self.n_background += 1
        else:
            self._n_open -= 1
            self._done.append((connection.number, latency_s, connection.chunks))
        self._next(connection)

    def _next(self, connection: _Connection) -> None:
        following = next(connection.requests, None)
        if following is None:  # what the server does with the connection now, such as close it, is its own affair
            self._selector.unregister(connection.socket)
            return
        connection.number, request = following
        if connection.number >= 0:
            self._n_open += 1
        connection.chunks, connection.n_missing = [], -1
        connection.started = time.perf_counter()
        if connection.closes:  # a user of such a server pays for a connection each time
            self._selector.unregister(connection.socket)
            connection.socket.close()
            connection.socket, connection.closes = _connect(self._address), False
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.unsent = memoryview(request)
        if not connection.send():
            self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)


def _answer(number: int, latency_s: float, received: bytes) -> Answer:
    head, _, body = received.partition(b"\r\n\r\n")
    return Answer(number, latency_s, int(head.split(None, 2)[1]), body)
