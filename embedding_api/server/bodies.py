"""The body of a request, from its bytes as they come: by its length, or from its chunks.

Both are read by an iterator that yields False whenever more bytes must come. It ends with the body, so `next(iterator,
True)` says if the body is complete. The decoder of chunks is as strict as Gunicorn's own reader, which blocks.
"""

import re
from collections.abc import Callable, Generator, Iterator

from gunicorn.http.body import CHUNK_EXT_RE

from embedding_api.errors import InvalidBodyError

# Bytes of a chunk's size with its extensions, as in Gunicorn's reader.
_MAX_SIZE_LINE_BYTES = 8190
# Bytes that the trailers may have.
MAX_TRAILER_BYTES = 65_536
# Bytes that framing may cost beyond as many bytes as the chunks carry.
_MAX_OVERHEAD_BYTES = 65_536

# No part of it can match in two ways. Otherwise a client could make the worker search for minutes.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*(;.*))?", re.DOTALL)


def cut_off(buffer: bytearray, n_bytes: int, write: Callable[[memoryview], object]) -> Iterator[bool]:
    """Remove so many bytes from the buffer, and write them."""
    while n_bytes:
        with memoryview(buffer) as view, view[:n_bytes] as piece:
            n_written_bytes = len(piece)
            write(piece)
        del buffer[:n_written_bytes]
        n_bytes -= n_written_bytes
        if n_bytes:
            yield False


def decode(
    buffer: bytearray, write: Callable[[memoryview], object], check_trailers: Callable[[bytes], object]
) -> Iterator[bool]:
    """Decode a chunked body.

    Args:
        buffer: What has come. Decoded bytes are removed from it.
        write: Gets the bytes of the chunks, in pieces that it must not keep.
        check_trailers: Raises an exception if trailers, without their last line break, are malformed.

    Raises:
        InvalidBodyError: The chunks are malformed, or cost far more bytes than they carry.
    """
    n_overhead_bytes = n_data_bytes = 0
    while True:
        line = yield from _cut_off_until(buffer, b"\r\n", _MAX_SIZE_LINE_BYTES)
        n_overhead_bytes += len(line) + 4
        if n_overhead_bytes > n_data_bytes + _MAX_OVERHEAD_BYTES:
            raise InvalidBodyError("the chunks of the body cost far more bytes than they carry; send larger chunks")
        n_bytes = _size(line)
        if not n_bytes:
            break
        n_data_bytes += n_bytes
        yield from cut_off(buffer, n_bytes, write)
        if (yield from _cut_off_until(buffer, b"\r\n", 0)):
            raise _malformed()
    while len(buffer) < 2:
        yield False
    if buffer.startswith(b"\r\n"):
        del buffer[:2]
    else:
        check_trailers((yield from _cut_off_until(buffer, b"\r\n\r\n", MAX_TRAILER_BYTES)))


def _cut_off_until(buffer: bytearray, end: bytes, max_bytes: int) -> Generator[bool, None, bytes]:
    """Remove the bytes up to an end from the buffer, and the end, once it has come. Return those before the end."""
    while (n_bytes := buffer.find(end, 0, max_bytes + len(end))) < 0:
        if len(buffer) > max_bytes and not end.startswith(buffer[max_bytes:]):
            raise _malformed()
        yield False
    data = bytes(buffer[:n_bytes])
    del buffer[: n_bytes + len(end)]
    return data


def _size(line: bytes) -> int:
    size = _SIZE_LINE.fullmatch(line)
    if size is None or (size[2] and (b"\r" in size[2] or not CHUNK_EXT_RE.fullmatch(size[2]))):
        raise _malformed()
    return int(size[1], 16)


def _malformed() -> InvalidBodyError:
    return InvalidBodyError("the chunks of the body are malformed; send it again")
