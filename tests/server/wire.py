"""HTTP as bytes: requests that no client library would send, and the answers to them."""

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

# Seconds to wait for an answer. After that the test fails.
TIMEOUT_S = 60


class Answer(NamedTuple):
    """A response. The names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def is_last(self) -> bool:
        """True if the server accepts no other request on this connection."""
        return self.headers.get("connection", "").lower() == "close"


class Connection:
    """A connection that sends one request after another. It opens again if the server closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self.n_opened = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._stream.close()
            self._socket.close()
            self._socket = None

    def send(self, request: bytes) -> None:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._stream = self._socket.makefile("rb")
            self.n_opened += 1
        # The server may refuse a request at its first line, and close the connection before all of the request is sent.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(request)

    def ask(self, request: bytes) -> Answer:
        """Sends a request and reads its answer."""
        self.send(request)
        answer = self._read()
        if answer.is_last:
            self.close()
        return answer

    def ask_last(self, request: bytes) -> Answer:
        """Send a request without a marked end, so that no other request can follow; read its answer."""
        self.close()
        self.send(request)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        answer = self._read()
        self.close()
        return answer

    def _read(self) -> Answer:
        status = 100
        while status < 200:
            line = self._stream.readline()
            assert line, "the connection was closed without an answer"
            status = int(line.split()[1])
            headers = dict(self._headers())
        length = headers.get("content-length")
        return Answer(status, headers, self._stream.read(-1 if length is None else int(length)))

    def _headers(self) -> Iterator[tuple[str, str]]:
        while line := self._stream.readline().decode("latin-1").strip():
            name, _, value = line.partition(":")
            yield name.lower(), value.strip()


def post(body: bytes, *headers: bytes, path: bytes = b"/v1/embeddings", length: bytes | None = None) -> bytes:
    """Return the bytes of a POST with additional header lines. `length` replaces the right Content-Length."""
    lines = [b"POST %s HTTP/1.1" % path, b"Host: x", *headers]
    lines.append(b"Content-Length: " + (b"%d" % len(body) if length is None else length))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(*chunks: bytes, headers: tuple[bytes, ...] = ()) -> bytes:
    """Return the bytes of a POST with a chunked body. The last chunk should be empty, because that marks the end."""
    lines = [b"POST /v1/embeddings HTTP/1.1", b"Host: x", *headers, b"Transfer-Encoding: chunked"]
    return b"\r\n".join(lines) + b"\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


def error(answer: Answer) -> dict[str, Any]:
    """Return the error in an answer, after a check that the answer has the form of an error body."""
    assert answer.headers["content-type"] == "application/json", answer
    document = answer.json
    assert document.keys() == {"error"}, document
    assert document["error"].keys() == {"message", "type", "param", "code"}, document
    assert document["error"]["message"], document
    return document["error"]
