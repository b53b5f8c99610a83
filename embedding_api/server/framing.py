"""Whether the request at the beginning of a connection's bytes is there as a whole. Bytes in; knows no sockets.

It says when a request is handed over, not what it is: Gunicorn's parser judges that, from the same bytes. A head that
the parser will refuse is handed over as it is, so that the answer need not wait for more.
"""

import enum
import re

from embedding_api.request import MAX_HEAD_BYTES

# Of a chunk's size with its extensions, as in Gunicorn's reader.
_MAX_SIZE_LINE_BYTES = 8190
# What chunks may cost beyond as many bytes as they carry.
_MAX_OVERHEAD_BYTES = 65_536

# Nothing in it can match in two ways, or a client could make the worker search for minutes.
_FIELDS = re.compile(rb"\r\n(content-length|transfer-encoding|expect):([^\r\n]*)(?=\r\n)", re.IGNORECASE)
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;.*)?", re.DOTALL)


class Verdict(enum.Enum):
    """What has become of a request."""

    UNDER_WAY = enum.auto()
    WHOLE = enum.auto()
    # Those that follow will never be whole, and their connection cannot be used again.
    MALFORMED = enum.auto()
    HEAD_TOO_LARGE = enum.auto()
    BODY_TOO_LARGE = enum.auto()


class Framing:
    """The request at the beginning of a buffer that grows.

    Args:
        max_line_bytes: Of the request line; 0 if only the head as a whole is bounded.
        max_body_bytes: Of the body, without what chunks add.

    Attributes:
        n_head_bytes: Of the head with its empty line; 0 until that has come.
        n_bytes: Of the request, as far as that is known: until it is whole, its body may be missing.
        has_body: Whether the head announces one.
        expects_continue: Whether the client waits for `100 Continue` before it sends the body.
    """

    __slots__ = (
        "_is_chunked", "_max_body_bytes", "_max_line_bytes", "_n_payload_bytes", "_n_searched", "_next_size_line",
        "expects_continue", "has_body", "n_bytes", "n_head_bytes",
    )  # fmt: skip

    def __init__(self, max_line_bytes: int, max_body_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._max_body_bytes = max_body_bytes
        self.n_head_bytes = 0
        self.n_bytes = 0
        self.has_body = False
        self.expects_continue = False
        self._n_searched = 0
        self._is_chunked = False
        # Of chunks: what their sizes announce so far, and where the next size is to be found, in the buffer or beyond.
        self._n_payload_bytes = 0
        self._next_size_line = 0

    def look(self, buffer: bytearray) -> Verdict:
        """What has become of the request; the buffer is the one of the last call, with more at its end."""
        if not self.n_head_bytes and (verdict := self._look_at_head(buffer)) is not None:
            return verdict
        if self._is_chunked:
            return self._look_at_chunks(buffer)
        if self.n_bytes - self.n_head_bytes > self._max_body_bytes:
            return Verdict.BODY_TOO_LARGE
        return Verdict.WHOLE if len(buffer) >= self.n_bytes else Verdict.UNDER_WAY

    def _look_at_head(self, buffer: bytearray) -> Verdict | None:
        # One empty line before a request is ignored, here as in the parser.
        start = 2 if buffer.startswith(b"\r\n") else 0
        end = buffer.find(b"\r\n\r\n", max(start, self._n_searched - 3))
        if end < 0:
            self._n_searched = len(buffer)
            return self._refusal_of_half_a_head(buffer, start)
        self.n_head_bytes = self.n_bytes = end + 4
        self._read_fields(buffer, start, end)
        return None

    def _refusal_of_half_a_head(self, buffer: bytearray, start: int) -> Verdict:
        """What can be seen to be wrong before the end, that may never come."""
        if len(buffer) > MAX_HEAD_BYTES:
            return Verdict.HEAD_TOO_LARGE
        line_end = buffer.find(b"\r\n", start)
        is_line_too_long = 0 < self._max_line_bytes < (line_end if line_end >= 0 else len(buffer) - 2) - start
        # Such as the handshake of TLS, whose client waits for an answer.
        is_no_method = len(buffer) > start and buffer != b"\r" and not _METHOD.match(buffer, start)
        has_bare_line_feed = buffer.count(b"\n") != buffer.count(b"\r\n")
        is_malformed = is_line_too_long or is_no_method or has_bare_line_feed
        return Verdict.MALFORMED if is_malformed else Verdict.UNDER_WAY

    def _read_fields(self, buffer: bytearray, start: int, end: int) -> None:
        """Finds how the body is framed; where that is not as the parser wants it, the head is the whole request."""
        fields: dict[bytes, list[bytes]] = {b"content-length": [], b"transfer-encoding": [], b"expect": []}
        for name, value in _FIELDS.findall(buffer, start, end + 2):
            fields[name.lower()].append(value.strip(b" \t").lower())
        lengths, codings, expectations = fields.values()
        if any(value != b"100-continue" for value in expectations):
            return
        if codings and not lengths:
            self.has_body = self._is_chunked = codings[-1].rpartition(b",")[2].strip(b" \t") == b"chunked"
            self._next_size_line = self.n_head_bytes
        elif len(lengths) == 1 and not codings and lengths[0].isdigit():
            # Of more digits Python makes no number.
            n_body_bytes = int(lengths[0][:4000])
            self.has_body = n_body_bytes > 0
            self.n_bytes += n_body_bytes
        is_http_1_0 = buffer[start : buffer.find(b"\r\n", start)].endswith(b"HTTP/1.0")
        self.expects_continue = self.has_body and bool(expectations) and not is_http_1_0

    def _look_at_chunks(self, buffer: bytearray) -> Verdict:
        while len(buffer) >= self._next_size_line:
            line = self._next_size_line
            if line > self.n_head_bytes and self._n_payload_bytes and buffer[line - 2 : line] != b"\r\n":
                return Verdict.MALFORMED
            line_end = buffer.find(b"\r\n", line, line + _MAX_SIZE_LINE_BYTES + 2)
            if line_end < 0:
                is_too_long = len(buffer) - line > _MAX_SIZE_LINE_BYTES
                return Verdict.MALFORMED if is_too_long else self._bounded(buffer)
            size = _SIZE_LINE.fullmatch(buffer, line, line_end)
            if size is None:
                return Verdict.MALFORMED
            n_chunk_bytes = int(size[1], 16)
            if n_chunk_bytes == 0:
                return self._look_at_trailers(buffer, line_end + 2)
            self._n_payload_bytes += n_chunk_bytes
            self._next_size_line = line_end + 2 + n_chunk_bytes + 2
        return self._bounded(buffer)

    def _look_at_trailers(self, buffer: bytearray, start: int) -> Verdict:
        end = start - 2 if buffer.startswith(b"\r\n", start) else buffer.find(b"\r\n\r\n", start)
        if end >= 0:
            self.n_bytes = end + 4
            is_too_large = self._n_payload_bytes > self._max_body_bytes
            return Verdict.BODY_TOO_LARGE if is_too_large else Verdict.WHOLE
        return Verdict.MALFORMED if len(buffer) - start > MAX_HEAD_BYTES else Verdict.UNDER_WAY

    def _bounded(self, buffer: bytearray) -> Verdict:
        # As many bytes must have come, not only been announced: the application counts what it can read.
        n_payload_bytes = self._n_payload_bytes - max(0, self._next_size_line - 2 - len(buffer))
        if n_payload_bytes > self._max_body_bytes:
            return Verdict.BODY_TOO_LARGE
        n_overhead_bytes = len(buffer) - self.n_head_bytes - n_payload_bytes
        is_too_fine = n_overhead_bytes > n_payload_bytes + _MAX_OVERHEAD_BYTES
        return Verdict.MALFORMED if is_too_fine else Verdict.UNDER_WAY
