"""What is to be sent to a client: bytes, and pieces of files, which are never read into memory."""

import os
import socket
from collections import deque
from typing import IO, NamedTuple

# Far fewer than the 1,024 pieces that the kernel takes at once.
_MAX_PIECES = 64


class FilePiece(NamedTuple):
    """A part of a file that is to be sent.

    Attributes:
        file: Its descriptor, owned by the outbox.
        start: The first byte.
        end: The byte after the last.
    """

    file: int
    start: int
    end: int


class Outbox:
    """What a client has not taken yet. It stands where Gunicorn's `Response` has a socket, and never blocks.

    One thread at a time may use it.

    Attributes:
        n_bytes: Bytes in memory.
        n_sent_bytes: Bytes that were sent since the outbox was made.
    """

    def __init__(self) -> None:
        self.n_bytes = 0
        self.n_sent_bytes = 0
        self._pieces: deque[bytes | memoryview | FilePiece] = deque()

    @property
    def is_sending_file(self) -> bool:
        """True if a piece of a file is next."""
        return bool(self._pieces) and isinstance(self._pieces[0], FilePiece)

    def sendall(self, data: bytes) -> None:
        """Add bytes."""
        self._pieces.append(data)
        self.n_bytes += len(data)

    def sendfile(self, file: IO[bytes], offset: int, count: int) -> None:
        """Add `count` bytes of a file from `offset` on. The caller may close the file afterwards."""
        self._pieces.append(FilePiece(os.dup(file.fileno()), offset, offset + count))

    def send(self, client: socket.socket) -> bool:
        """Send what the socket takes. Return True if nothing is left.

        Raises:
            OSError: The client is gone, or a file is shorter than it was.
        """
        try:
            while self._pieces:
                if isinstance(piece := self._pieces[0], FilePiece):
                    self._send_file(client, piece)
                else:
                    self._send_bytes(client)
        except BlockingIOError:
            return False
        return True

    def _send_file(self, client: socket.socket, piece: FilePiece) -> None:
        n_sent_bytes = os.sendfile(client.fileno(), piece.file, piece.start, piece.end - piece.start)
        if n_sent_bytes == 0 and piece.start < piece.end:
            raise OSError("the file is shorter than it was")
        self.n_sent_bytes += n_sent_bytes
        self._pieces[0] = piece._replace(start=piece.start + n_sent_bytes)
        if piece.start + n_sent_bytes == piece.end:
            os.close(piece.file)
            self._pieces.popleft()

    def _send_bytes(self, client: socket.socket) -> None:
        pieces: list[bytes | memoryview] = []
        for piece in self._pieces:
            if isinstance(piece, FilePiece) or len(pieces) == _MAX_PIECES:
                break
            pieces.append(piece)
        n_sent_bytes = client.sendmsg(pieces)
        self.n_sent_bytes += n_sent_bytes
        self.n_bytes -= n_sent_bytes
        for piece in pieces:
            if n_sent_bytes < len(piece):
                self._pieces[0] = memoryview(piece)[n_sent_bytes:]
                return
            n_sent_bytes -= len(piece)
            self._pieces.popleft()

    def clear(self) -> None:
        """Drop what was not sent."""
        for piece in self._pieces:
            if isinstance(piece, FilePiece):
                os.close(piece.file)
        self._pieces.clear()
        self.n_bytes = 0
