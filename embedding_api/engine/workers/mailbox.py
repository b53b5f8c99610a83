"""A worker's end of the exchange: what it sends, and what it receives.

Messages are pickled. The sockets have no name, so only workers that one master forked can write to them.
"""

import pickle
import select
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from embedding_api.engine.scheduling.board import Seat
from embedding_api.engine.work import Address, Result, Undone, Work
from embedding_api.engine.workers.exchange import MAX_MESSAGE, WAKE, Exchange

# Milliseconds after which a message that a socket refused for another reason than being full is sent again.
_AGAIN_MS = 10

# Bytes of a message that are no token ids and no part of an outcome, rounded up.
_OVERHEAD = 512


class Returned(NamedTuple):
    """What became of a batch that another worker had.

    Attributes:
        worker: The worker that had it.
        number: The owner's name for the batch.
        outcome: All of its result, or why there is none.
    """

    worker: Address
    number: int
    outcome: Result | Undone


class _Piece(NamedTuple):
    """Some bytes of a pickled outcome.

    Attributes:
        worker: The worker that had the batch.
        number: The owner's name for the batch.
        start: Where these bytes belong. A piece that was late comes after those behind it.
        n_bytes: Bytes of the whole outcome.
        data: These bytes.
    """

    worker: Address
    number: int
    start: int
    n_bytes: int
    data: bytes


class Mailbox:
    """A worker's end of the exchange. One thread receives; any may send.

    Args:
        exchange: All workers.
        seat: This worker's.

    Attributes:
        max_sent_ids: The most token ids of a batch that fit into a message, with one number more for each text.
    """

    def __init__(self, exchange: Exchange, seat: Seat) -> None:
        self.max_sent_ids = (exchange.max_message - _OVERHEAD) // 4
        self._exchange = exchange
        self._address = seat.address
        self._inbox = exchange.sockets[seat.address.seat][0]
        # The pieces of outcomes of which others still come.
        self._pieces: dict[tuple[Address, int], list[_Piece]] = {}
        # Messages that sockets did not take, and their receivers.
        self._late: deque[tuple[Address, bytes]] = deque()
        self._lock = threading.Lock()

    def wake(self, worker: Address) -> None:
        """Make a worker's `receive` return None. One whose inbox is full has messages to read, and looks again soon."""
        self._exchange.try_to_send(worker.seat, WAKE)

    def send(self, work: Work, to: Address) -> bool:
        """Send a batch. Return False if that worker's socket does not take it."""
        return self._exchange.try_to_send(to.seat, pickle.dumps((to, work)))

    def send_back(self, work: Work, outcome: Result | Undone) -> None:
        """Send what became of a batch to its owner; return at once, however slow the owner is."""
        data = pickle.dumps(outcome, protocol=5)
        # Smaller pieces leave room in a socket's buffer for a batch, a message to wake, and other pieces.
        step = self._exchange.max_message // 2 - _OVERHEAD
        starts = range(0, len(data), step)
        pieces = [_Piece(self._address, work.number, start, len(data), data[start : start + step]) for start in starts]
        self._send_surely(work.owner, [pickle.dumps((work.owner, piece)) for piece in pieces])

    def receive(self, timeout_s: float) -> Work | Returned | None:
        """Return the next message; None if none came in time.

        It returns None sooner if this worker was woken, if the message was for another one, if more pieces of it must
        come, or if late messages may be sent by now.
        """
        if not self._poll(timeout_s * 1000, self._retry_late()):
            return None
        to, message = pickle.loads(self._inbox.recv(MAX_MESSAGE))  # noqa: S301 - only workers write to it
        # It may be for nobody, or for an earlier worker with this seat.
        if to != self._address:
            return None
        return self._assembled(message) if isinstance(message, _Piece) else message

    def _assembled(self, piece: _Piece) -> Returned | None:
        key = piece.worker, piece.number
        if key not in self._pieces:
            # A worker that is gone sends no more pieces.
            is_present = self._exchange.board.is_present
            self._pieces = {old: pieces for old, pieces in self._pieces.items() if is_present(old[0])}
        pieces = self._pieces.setdefault(key, [])
        pieces.append(piece)
        if sum(len(one.data) for one in pieces) < piece.n_bytes:
            return None
        del self._pieces[key]
        data = b"".join(one.data for one in sorted(pieces))
        return Returned(*key, pickle.loads(data))  # noqa: S301 - as above

    def _send_surely(self, to: Address, messages: Sequence[bytes]) -> None:
        """Send now what the socket takes, and the rest from the thread that receives."""
        with self._lock:
            rest = deque(messages)
            while rest and not self._late and self._exchange.try_to_send(to.seat, rest[0]):
                rest.popleft()
            self._late += [(to, message) for message in rest]
        if rest:
            self.wake(self._address)

    def _retry_late(self) -> set[int]:
        """Send the late messages that sockets take by now. Return the seats whose sockets to wait for."""
        with self._lock:
            late, self._late = self._late, deque()
            for to, message in late:
                if self._exchange.board.is_present(to) and not self._exchange.try_to_send(to.seat, message):
                    self._late.append((to, message))
            # A socket that is not full, and takes nothing nevertheless, would end the wait at once.
            return {to.seat for to, _ in self._late} if len(self._late) < len(late) else set()

    def _poll(self, timeout_ms: float, seats: set[int]) -> bool:
        """Return True once there is something to receive; False after the time, or sooner while messages are late."""
        poll = select.poll()
        poll.register(self._inbox, select.POLLIN)
        for seat in seats:
            poll.register(self._exchange.sockets[seat][1], select.POLLOUT)
        events = poll.poll(min(timeout_ms, _AGAIN_MS) if self._late else timeout_ms)
        return any(fd == self._inbox.fileno() for fd, _ in events)
