"""A chunked body, decoded from its bytes as they come. It is as strict as Gunicorn's own reader, which blocks."""

import enum
import re
from collections.abc import Callable

from gunicorn.http.body import CHUNK_EXT_RE

from embedding_api.errors import InvalidBodyError

# Bytes of a chunk's size with its extensions, as in Gunicorn's reader.
_MAX_SIZE_LINE_BYTES = 8190
# Bytes that the trailers may have.
MAX_TRAILER_BYTES = 65_536
# Bytes that framing may cost beyond as many bytes as the chunks carry.
_MAX_OVERHEAD_BYTES = 65_536

# Nothing in it can match in two ways, or a client could keep the worker searching for minutes.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*(;.*))?", re.DOTALL)


class _Next(enum.Enum):
    SIZE_LINE = enum.auto()
    DATA = enum.auto()
    END_OF_DATA = enum.auto()
    TRAILERS = enum.auto()
    NOTHING = enum.auto()


class ChunkDecoder:
    """Decodes one body.

    Args:
        write: Gets the bytes of the chunks, in pieces that it must not keep.
        check_trailers: Raises an exception if trailers, without their last line break, are malformed.
    """

    def __init__(self, write: Callable[[memoryview], object], check_trailers: Callable[[bytes], object]) -> None:
        self._write = write
        self._check_trailers = check_trailers
        self._next = _Next.SIZE_LINE
        self._n_missing_bytes = 0
        self._n_overhead_bytes = 0
        self._n_data_bytes = 0

    def feed(self, buffer: bytearray) -> bool:
        """Decode what has come and remove it from the buffer. Return True once the body is complete.

        Raises:
            InvalidBodyError: The chunks are malformed, or cost far more bytes than they carry.
        """
        position = 0
        while (step := self._step(buffer, position)) is not None:
            position += step
        del buffer[:position]
        if self._n_overhead_bytes > self._n_data_bytes + _MAX_OVERHEAD_BYTES:
            raise InvalidBodyError("the chunks of the body cost far more bytes than they carry; send larger chunks")
        return self._next is _Next.NOTHING

    def _step(self, buffer: bytearray, start: int) -> int | None:
        """Return how many bytes from `start` on were decoded; None if more must come first."""
        if self._next is _Next.DATA:
            return self._read_data(buffer, start)
        if self._next is _Next.NOTHING:
            return None
        read = {
            _Next.SIZE_LINE: self._read_size_line,
            _Next.END_OF_DATA: self._read_end_of_data,
            _Next.TRAILERS: self._read_trailers,
        }[self._next]
        n_bytes = read(buffer, start)
        self._n_overhead_bytes += n_bytes or 0
        return n_bytes

    def _read_size_line(self, buffer: bytearray, start: int) -> int | None:
        end = buffer.find(b"\r\n", start, start + _MAX_SIZE_LINE_BYTES + 2)
        if end < 0:
            if len(buffer) - start > _MAX_SIZE_LINE_BYTES:
                raise _malformed()
            return None
        size = _SIZE_LINE.fullmatch(buffer, start, end)
        if size is None or (size[2] and (b"\r" in size[2] or not CHUNK_EXT_RE.fullmatch(size[2]))):
            raise _malformed()
        self._n_missing_bytes = int(size[1], 16)
        self._next = _Next.DATA if self._n_missing_bytes else _Next.TRAILERS
        return end + 2 - start

    def _read_data(self, buffer: bytearray, start: int) -> int | None:
        n_bytes = min(self._n_missing_bytes, len(buffer) - start)
        if not n_bytes:
            return None
        with memoryview(buffer) as view, view[start : start + n_bytes] as piece:
            self._write(piece)
        self._n_data_bytes += n_bytes
        self._n_missing_bytes -= n_bytes
        if not self._n_missing_bytes:
            self._next = _Next.END_OF_DATA
        return n_bytes

    def _read_end_of_data(self, buffer: bytearray, start: int) -> int | None:
        end = buffer[start : start + 2]
        if not b"\r\n".startswith(end):
            raise _malformed()
        if len(end) < 2:
            return None
        self._next = _Next.SIZE_LINE
        return 2

    def _read_trailers(self, buffer: bytearray, start: int) -> int | None:
        has_none = buffer.startswith(b"\r\n", start)
        end = start - 2 if has_none else buffer.find(b"\r\n\r\n", start)
        if end < start and not has_none:
            if len(buffer) - start > MAX_TRAILER_BYTES:
                raise _malformed()
            return None
        if not has_none:
            self._check_trailers(bytes(buffer[start:end]))
        self._next = _Next.NOTHING
        return end + 4 - start


def _malformed() -> InvalidBodyError:
    return InvalidBodyError("the chunks of the body are malformed; send it again")
