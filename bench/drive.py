"""Drives a server over HTTP from one thread, as cheaply as Python can, because it runs on the cores that it measures.

Requests are made before the clock starts, and responses are parsed after it has stopped. In between, a loop
over raw sockets does the requests. It supports only the parts of HTTP that the contestants use. Every round measures
the loop's own processor time.
"""

import collections
import gc
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.connection import Address, Connection

_STALLED_S = 180
_READ_BYTES = 1 << 20


class Response(NamedTuple):
    """The response to one request.

    Attributes:
        number: Number of the request, from 0.
        latency_s: From the first byte sent to the last byte received.
        status: HTTP status.
        body: Bytes after the head.
    """

    number: int
    latency_s: float
    status: int
    body: bytes


class Drive(NamedTuple):
    """Responses, and what they cost.

    Attributes:
        elapsed_s: From the first request to the last response.
        client_cpu_s: Processor time of the driver in that time, including the background.
        responses: In the order of their arrival.
        n_background: Number of background requests that were answered in that time.
    """

    elapsed_s: float
    client_cpu_s: float
    responses: list[Response]
    n_background: int


class Background(NamedTuple):
    """Requests that keep a server busy while others are measured.

    Attributes:
        requests: Sent in turn, again and again.
        n_connections: Connections, each with one request under way at any time.
        lead_s: Seconds from their beginning to that of the measured requests.
    """

    requests: Sequence[bytes]
    n_connections: int
    lead_s: float


def post(path: str, body: bytes, *, key: str = "") -> bytes:
    """Return the bytes of a POST request, with an API key if there is one."""
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
    connected: Sequence[socket.socket] = (),
) -> Drive:
    """Send all requests over some connections. Each connection sends its next request once it has a response.

    Args:
        address: Address of the server.
        requests: Requests as `post` makes them.
        n_connections: Number of connections.
        limit_s: Seconds after which no further request begins.
        background: Requests that keep the server busy meanwhile.
        connected: Open connections to use, as many as `n_connections`; by default it opens new ones. It closes them.

    Raises:
        RuntimeError: A response broke off, or none came for minutes.
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
        following = _until(queue, time.perf_counter() + limit_s)
        measured = loop.open(n_connections, following, begin=False, connected=connected)
        cpu_s, started = time.thread_time(), time.perf_counter()
        loop.begin(measured)
        loop.run()
        elapsed_s, cpu_s = time.perf_counter() - started, time.thread_time() - cpu_s
        return Drive(elapsed_s, cpu_s, loop.responses, loop.n_background - n_before)
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


class _Loop:
    """All connections of one drive."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._selector = selectors.DefaultSelector()
        self._connections: list[Connection] = []
        self._n_open = 0
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._done: list[tuple[int, float, list[bytes]]] = []
        self.n_background = 0

    @property
    def responses(self) -> list[Response]:
        """Responses to the measured requests, parsed."""
        return [_response(number, latency_s, b"".join(chunks)) for number, latency_s, chunks in self._done]

    def open(
        self,
        n_connections: int,
        requests: Iterator[tuple[int, bytes]],
        *,
        begin: bool = True,
        connected: Sequence[socket.socket] = (),
    ) -> list[Connection]:
        """Return connections, new or over open sockets; send their first requests unless `begin` is false."""
        opened = [Connection(self._address, requests, each) for each in connected or [None] * n_connections]
        self._connections += opened
        for connection in opened:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        if begin:
            self.begin(opened)
        return opened

    def begin(self, connections: Sequence[Connection]) -> None:
        """Send the first request of each connection."""
        for connection in connections:
            self._next(connection)

    def run(self, until: float = float("inf")) -> None:
        """Send and receive until a moment, or until all measured requests have a response."""
        while self._n_open if until == float("inf") else time.perf_counter() < until:
            events = self._selector.select(min(_STALLED_S, max(0, until - time.perf_counter())))
            if not events and until == float("inf"):
                raise RuntimeError(f"the server did not respond for {_STALLED_S} s")
            for key, mask in events:
                connection: Connection = key.data
                if mask & selectors.EVENT_WRITE:
                    if connection.send():
                        self._selector.modify(connection.socket, selectors.EVENT_READ, connection)
                elif connection.receive(self._buffer):
                    self._finish(connection)

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.socket.close()
        self._selector.close()

    def _finish(self, connection: Connection) -> None:
        latency_s = time.perf_counter() - connection.started
        if connection.number < 0:
            self.n_background += 1
        else:
            self._n_open -= 1
            self._done.append((connection.number, latency_s, connection.chunks))
        self._next(connection)

    def _next(self, connection: Connection) -> None:
        following = next(connection.requests, None)
        if following is None:  # from now on the server may close the connection
            self._selector.unregister(connection.socket)
            return
        connection.number, request = following
        if connection.number >= 0:
            self._n_open += 1
        connection.started = time.perf_counter()
        if connection.closes:  # the time to connect counts, as it does for a user of such a server
            self._selector.unregister(connection.socket)
            connection.reconnect()
            self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.begin(request)
        if not connection.send():
            self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)


def _response(number: int, latency_s: float, received: bytes) -> Response:
    head, _, body = received.partition(b"\r\n\r\n")
    return Response(number, latency_s, int(head.split(None, 2)[1]), body)
