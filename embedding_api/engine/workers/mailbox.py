"""A worker's end of the exchange: what it sends, and what it receives."""

import select
import threading
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from embedding_api.engine.scheduling.board import Seat
from embedding_api.engine.work import Address, Result, Undone, Work
from embedding_api.engine.workers import wire
from embedding_api.engine.workers.exchange import MAX_MESSAGE, Exchange
from embedding_api.engine.workers.wire import Assembly, Piece, Returned, Woken

# Milliseconds after which a message that a socket refused for another reason than being full is sent again.
_AGAIN_MS = 10


class Delivered(NamedTuple):
    """The result of a batch that another worker computed.

    Attributes:
        worker: The worker that computed it.
        number: The owner's name for the batch.
        result: All of it.
    """

    worker: Address
    number: int
    result: Result


class Mailbox:
    """A worker's end of the exchange. One thread receives; any may send.

    Args:
        exchange: All workers.
        seat: This worker's.
    """

    def __init__(self, exchange: Exchange, seat: Seat) -> None:
        self._exchange = exchange
        self._address = seat.address
        self._inbox = exchange.sockets[seat.address.seat][0]
        self._buffer = memoryview(bytearray(MAX_MESSAGE))
        self._poll = select.poll()
        self._poll.register(self._inbox, select.POLLIN)
        self._assemblies: dict[tuple[Address, int], Assembly] = {}
        # Messages that sockets did not take, and their receivers.
        self._late: deque[tuple[Address, bytes]] = deque()
        self._lock = threading.Lock()

    def wake(self, worker: Address) -> None:
        """Make a worker's `receive` return. A worker whose inbox is full looks around anyway, after each message."""
        self._exchange.try_to_send(worker.seat, wire.wake(self._address))

    def send(self, work: Work, to: Address) -> bool:
        """Send a batch. Return False if that worker's socket does not take it."""
        return self._exchange.try_to_send(to.seat, wire.work(work, to))

    def send_result(self, work: Work, result: Result) -> None:
        """Send the result of a batch to its owner; return at once, however slow the owner is."""
        # Two messages fit into a socket's buffer.
        self._send_surely(work.owner, wire.pieces(work, result, self._address, self._exchange.max_message // 2))

    def send_back(self, work: Work, why: Undone) -> None:
        """Tell the owner of a batch that it is not computed here; return at once."""
        self._send_surely(work.owner, [wire.returned(work, why, self._address)])

    def receive(self, timeout_s: float) -> Woken | Work | Delivered | Returned | None:
        """Return the next message; None if none came in time, sooner while there is still something to send."""
        if not self._wait(timeout_s * 1000):
            return None
        n_bytes = self._inbox.recv_into(self._buffer)
        message = wire.parse(self._buffer[:n_bytes], self._address.generation)
        return self._assembled(message) if isinstance(message, Piece) else message

    def _assembled(self, piece: Piece) -> Delivered | None:
        key = piece.worker, piece.number
        if key not in self._assemblies:
            # A worker that is gone sends no more pieces.
            is_present = self._exchange.board.is_present
            self._assemblies = {old: one for old, one in self._assemblies.items() if is_present(old[0])}
            self._assemblies[key] = Assembly(piece.n_bytes)
        if (result := self._assemblies[key].add(piece)) is None:
            return None
        del self._assemblies[key]
        return Delivered(piece.worker, piece.number, result)

    def _send_surely(self, to: Address, messages: Iterable[bytes]) -> None:
        """Send now what the socket takes, and the rest from the thread that receives."""
        with self._lock:
            rest = deque(messages)
            while rest and not self._late and self._exchange.try_to_send(to.seat, rest[0]):
                rest.popleft()
            self._late += [(to, message) for message in rest]
        if rest:
            self.wake(self._address)

    def _wait(self, timeout_ms: float) -> bool:
        """Send what sockets take by now, and return True if there is something to receive."""
        if not self._late:
            return bool(self._poll.poll(timeout_ms))
        with self._lock:
            late, self._late = self._late, deque()
            for to, message in late:
                if self._exchange.board.is_present(to) and not self._exchange.try_to_send(to.seat, message):
                    self._late.append((to, message))
            is_any_sent = len(self._late) < len(late)
            seats = {to.seat for to, _ in self._late}
        poll = select.poll()
        poll.register(self._inbox, select.POLLIN)
        # A socket that is not full, and takes nothing nevertheless, would end the wait at once.
        for seat in seats if is_any_sent else ():
            poll.register(self._exchange.sockets[seat][1], select.POLLOUT)
        return any(fd == self._inbox.fileno() for fd, _ in poll.poll(min(timeout_ms, _AGAIN_MS)))
