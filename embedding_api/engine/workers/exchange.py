"""The exchange: the board and the sockets over which workers send each other batches and results.

The master makes it, so that all workers inherit it and no other process can write to it. A worker that computes alone
makes its own. The kernel keeps messages whole and in order, so a worker that is killed while it sends breaks nothing.
"""

import mmap
import pickle
import socket
import sys

from embedding_api.engine.scheduling.board import BYTES_PER_SEAT, Board, Seat

# Linux alone has sockets that keep messages whole and in order and say when a receiver is slow.
WORKERS_CAN_SEND = sys.platform == "linux"
_SOCKET_TYPE = socket.SOCK_SEQPACKET if WORKERS_CAN_SEND else socket.SOCK_DGRAM

# Bytes of the largest message: a GPU's batch of 16,384 tokens and more. A buffer holds at least two.
MAX_MESSAGE = 131_072

# The message to nobody that lets any worker look at the board.
WAKE = pickle.dumps((None, None))


class Exchange:
    """The board and the sockets of all workers. Make it before the fork.

    Args:
        n_seats: The most workers at one time.

    Attributes:
        board: See `Board`.
        sockets: For each seat the socket to read from, and the one to write to.
        max_message: Bytes of the largest message.
    """

    def __init__(self, n_seats: int) -> None:
        self.board = Board(memoryview(mmap.mmap(-1, BYTES_PER_SEAT * n_seats)))
        self.sockets = [socket.socketpair(socket.AF_UNIX, _SOCKET_TYPE) for _ in range(n_seats)]
        for _, writer in self.sockets:
            writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_MESSAGE)
        buffer = self.sockets[0][1].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.max_message = min(MAX_MESSAGE, buffer // 2)

    def leave(self, seat: Seat) -> None:
        """Leave the seat of a worker that ends, and wake the others."""
        seat.leave()
        for worker in self.board.workers():
            self.try_to_send(worker.seat, WAKE)

    def try_to_send(self, seat: int, message: bytes) -> bool:
        """Return False if the socket did not take the message, most often because it is full."""
        try:
            self.sockets[seat][1].send(message, socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the sockets of this process."""
        for reader, writer in self.sockets:
            reader.close()
            writer.close()
