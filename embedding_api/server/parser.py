"""The HTTP/1.1 requests of a client, each parsed once, from the bytes of a connection as they come. Knows no sockets.

Gunicorn's own parser reads the head as soon as all of it is there, so its limits and refusals are those of Gunicorn's
other workers. The body is cut off by its length or decoded from its chunks. See docs/decisions/0011-one-parser.md.
"""

import io
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

from gunicorn.config import Config
from gunicorn.http import errors
from gunicorn.http.body import ChunkedReader
from gunicorn.http.message import Request as Head
from gunicorn.http.unreader import IterUnreader

from embedding_api.errors import BodyTooLargeError, InvalidBodyError, NotReadyError
from embedding_api.request import MAX_HEAD_BYTES
from embedding_api.server import bodies

_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]")


class Parser:
    """The request of a client that arrives, and the bytes that came after it.

    It holds the state of a head, of a body and of what follows, so it has many attributes and methods.

    Args:
        config: Gunicorn's, with the limits of a head.
        client: The address of the client.
        max_body_bytes: The most bytes of a body that is held in memory, without what chunks add.
        file_bodies: See `request.FILE_BODIES`.

    Attributes:
        buffer: What has come and is not parsed; after a complete request, what came after it.
        head: The head as Gunicorn's parser gives it; None until all of it has come.
        n_head_bytes: Bytes that have come of the head and of the empty line after it.
        body: What was decoded of the body, in an `io.BytesIO` or in a file.
        n_body_bytes: Bytes that were decoded.
        expects_continue: True if the client waits for `100 Continue` before it sends the body.
    """

    def __init__(
        self, config: Config, client: Any, max_body_bytes: int, file_bodies: Mapping[tuple[str, str], int]
    ) -> None:
        self._config = config
        self._client = client
        self._max_body_bytes = max_body_bytes
        self._file_bodies = file_bodies
        self.buffer = bytearray()
        self.begin_next()

    def begin_next(self) -> None:
        """Begin with the request after the one that was complete or faulty."""
        self._n_searched_bytes = 0
        self._length: int | None = 0
        self._rest_of_body: Iterator[bool] = iter(())
        self.head: Any = None
        self.n_head_bytes = 0
        self.body: IO[bytes] = io.BytesIO()
        self.n_body_bytes = 0
        self.expects_continue = False

    @property
    def has_begun(self) -> bool:
        """True if something of the request has come. Old clients send an empty line after a body, which is nothing."""
        return self.head is not None or bytes(self.buffer[:3]) not in {b"", b"\r\n"}

    @property
    def has_body(self) -> bool:
        """True if the head announces a body."""
        return self._length != 0

    @property
    def is_to_file(self) -> bool:
        """True if the body is written to a file."""
        return not isinstance(self.body, io.BytesIO)

    @property
    def n_missing_bytes(self) -> int | None:
        """The bytes of the body that have not come; None if its head does not tell."""
        return None if self._length is None else max(0, self._length - self.n_body_bytes - len(self.buffer))

    @property
    def n_held_bytes(self) -> int:
        """Bytes that this request, and what came after it, take in memory."""
        return len(self.buffer) + (0 if self.is_to_file else self.n_body_bytes)

    def parse(self, *, has_ended: bool) -> bool:
        """Parse what is in the buffer. Return True once the request is complete.

        Args:
            has_ended: The client will send nothing more.

        Raises:
            ParseException: The head is malformed or over a limit; `head` is None.
            InvalidBodyError: The body is malformed or breaks off.
            BodyTooLargeError: The body is larger than the route takes.
            NotReadyError: The body cannot be written to its file.
        """
        if self.head is None and not self._find_head(has_ended=has_ended):
            return False
        is_complete = next(self._rest_of_body, True)
        if has_ended and not is_complete:
            raise InvalidBodyError("the body breaks off before its end; send it again")
        return is_complete

    def close(self) -> None:
        """Drop what has come; the file of a body is closed, which removes it."""
        self.body.close()
        self.buffer = bytearray()
        self.begin_next()

    def _find_head(self, *, has_ended: bool) -> bool:
        buffer = self.buffer
        # RFC 9112 lets a server ignore one empty line before a request; Gunicorn's parser does.
        start = 2 if buffer.startswith(b"\r\n") else 0
        end = buffer.find(b"\r\n\r\n", max(start, self._n_searched_bytes - 3))
        self.n_head_bytes = len(buffer) if end < 0 else end + 4
        is_too_large = self.n_head_bytes > MAX_HEAD_BYTES
        if end < 0 or is_too_large:
            self._n_searched_bytes = len(buffer)
            if has_ended or self._is_malformed(start):
                self._read_head(bytes(buffer[: self.n_head_bytes]))
            if is_too_large:
                raise errors.LimitRequestHeaders("more than a head may have")
            return False
        head = self._read_head(bytes(buffer[: self.n_head_bytes]))
        del buffer[: self.n_head_bytes]
        self._begin_body(head)
        return True

    def _is_malformed(self, start: int) -> bool:
        """Return True if half a head is wrong already: its client may wait for the refusal and send no more."""
        buffer, max_line_bytes = self.buffer, self._config.limit_request_line
        line_end = buffer.find(b"\r\n", start)
        is_line_too_long = 0 < max_line_bytes < (line_end if line_end >= 0 else len(buffer) - 2) - start
        # Such as the handshake of TLS.
        is_no_method = len(buffer) > start and buffer != b"\r" and not _METHOD.match(buffer, start)
        return is_line_too_long or is_no_method or buffer.count(b"\n") != buffer.count(b"\r\n")

    def _read_head(self, data: bytes) -> Any:
        try:
            return Head(self._config, IterUnreader([data]), self._client)
        except (errors.NoMoreData, StopIteration):
            raise errors.InvalidRequestLine("the head breaks off") from None

    def _begin_body(self, head: Any) -> None:
        self.head = head
        if (head.method, head.path) in self._file_bodies:
            self.body = tempfile.TemporaryFile()  # noqa: SIM115 - it is open until the response is sent
        if isinstance(head.body.reader, ChunkedReader):
            self._length = None
            self._rest_of_body = bodies.decode(self.buffer, self._write, self._check_trailers)
        else:
            self._length = head.body.reader.length
            self._require_size(self._length)
            self._rest_of_body = bodies.cut_off(self.buffer, self._length, self._write)
        # There is no public way to learn of the expectation. It is cleared because Gunicorn would answer it again.
        self.expects_continue = self.has_body and head._expected_100_continue  # noqa: SLF001
        head._expected_100_continue = False  # noqa: SLF001

    def _write(self, piece: memoryview) -> None:
        self.n_body_bytes += len(piece)
        self._require_size(self.n_body_bytes)
        try:
            self.body.write(piece)
        except OSError as error:
            raise NotReadyError(f"the server cannot store the body: {error.strerror}") from error

    def _require_size(self, n_bytes: int) -> None:
        most = self._file_bodies.get((self.head.method, self.head.path), self._max_body_bytes)
        if n_bytes > most:
            raise BodyTooLargeError(f"the body is larger than {most} bytes; send fewer texts in one request")

    def _check_trailers(self, lines: bytes) -> None:
        try:
            self.head.parse_headers(lines, from_trailer=True)
        except errors.ParseException as error:
            raise InvalidBodyError("the trailers of the body are malformed; send it again") from error
