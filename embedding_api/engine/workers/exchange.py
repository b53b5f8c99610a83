"""The way between workers: who sits where, who is idle, and sockets over which batches and vectors travel.

Made in the master, so that all workers inherit it and no other process can write to it. The kernel keeps messages
whole and in order, so a worker that is killed while it sends or receives breaks nothing.
"""

import enum
import mmap
import select
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from embedding_api.engine.work import Ids, Vectors

# Linux alone has sockets that keep messages whole and in order and say when a receiver is slow.
WORKERS_CAN_SEND = sys.platform == "linux"
_SOCKET_TYPE = socket.SOCK_SEQPACKET if WORKERS_CAN_SEND else socket.SOCK_DGRAM

# Bytes of the largest message: a GPU's batch of 16,384 tokens and more. A buffer holds at least two.
_MAX_MESSAGE = 131_072

# Milliseconds after which a message that a socket refused for another reason than being full is sent again.
_AGAIN_MS = 10

# Kind of message; seat and generation of who sends; generation of who shall read it; number of the batch; two numbers
# that depend on the kind.
_HEADER = struct.Struct("=BHQQQII")
_WAKE, _BATCH, _VECTORS, _UNDONE = range(4)


class Address(NamedTuple):
    """A worker: the seat it has, and a number that is higher than that of any worker before it."""

    seat: int
    generation: int


class Wake(NamedTuple):
    """Something changed: a core is idle, or a worker is gone."""


class Order(NamedTuple):
    """A batch to compute for another worker.

    Attributes:
        sender: Who wants the vectors.
        number: What the sender calls the batch.
        place: Of its backend in the registry.
        n_prompt_tokens: See `Backend.embed`.
        ids: Of each text, int64, (n_tokens,).
    """

    sender: Address
    number: int
    place: int
    n_prompt_tokens: int
    ids: list[Ids]


class Delivery(NamedTuple):
    """Some components of a batch that another worker computed.

    Attributes:
        sender: Who computed it.
        number: What the receiver calls the batch.
        start: Place of the first component, counted over all rows.
        components: float32, (n,).
    """

    sender: Address
    number: int
    start: int
    components: Vectors


class Undone(enum.IntEnum):
    """Why a worker did not compute a batch of another's."""

    FAILED = 0
    HUNG = 1
    NOT_BEGUN = 2


class News(NamedTuple):
    """A batch that was sent to another worker will not come back.

    Attributes:
        sender: Who had it.
        number: What the receiver calls the batch.
        why: What became of it.
    """

    sender: Address
    number: int
    why: Undone


class Exchange:
    """Seats for workers that send each other batches. Make it before the fork.

    Args:
        n_seats: The most workers at one time.

    Attributes:
        inboxes: Of each seat, the socket to read from and the one to write to.
        max_message: Bytes of the largest message.
        taken: Whether a worker has the seat; the board's columns are int64, (n_seats,), shared by all processes.
        generation: Of the worker that has it, or had it last.
        accepts: Whether it takes a batch of another worker's.
        waiting_tokens: Of its texts that no core has taken.
        arriving_tokens: A guess at those of the requests that it holds and has not read yet.
        arriving_bytes: Of the requests that it holds.
        answered_tokens: Of the texts that were answered by all workers that ever had the seat; it never falls.
    """

    def __init__(self, n_seats: int) -> None:
        self.inboxes = [socket.socketpair(socket.AF_UNIX, _SOCKET_TYPE) for _ in range(n_seats)]
        for _, writer in self.inboxes:
            writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _MAX_MESSAGE)
        buffer = self.inboxes[0][1].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self.max_message = min(_MAX_MESSAGE, buffer // 2)
        # Aligned integers are written whole, and each by one process at a time.
        board = np.frombuffer(mmap.mmap(-1, 7 * 8 * n_seats), dtype=np.int64).reshape(7, n_seats)
        self.taken, self.generation, self.accepts = board[:3]
        self.waiting_tokens, self.arriving_tokens, self.arriving_bytes, self.answered_tokens = board[3:]

    def take_seat(self) -> "Seat | None":
        """A free seat, for the process that calls or one that it forks; None if all are taken.

        One process takes seats: the master.
        """
        free = np.flatnonzero(self.taken == 0)
        if not len(free):
            return None
        seat = int(free[0])
        self.generation[seat] = self.generation.max() + 1
        self.accepts[seat] = 0
        self.taken[seat] = 1
        return Seat(self, Address(seat, int(self.generation[seat])))

    def close(self) -> None:
        """Closes the sockets of this process."""
        for reader, writer in self.inboxes:
            reader.close()
            writer.close()


class Seat:
    """A worker's place on the exchange. One thread receives; any may do the rest.

    Attributes:
        exchange: That the seat is on.
        address: Of the worker that has it.
    """

    def __init__(self, exchange: Exchange, address: Address) -> None:
        self.address = address
        self.exchange = exchange
        self._inbox = exchange.inboxes[address.seat][0]
        self._buffer = memoryview(bytearray(_MAX_MESSAGE))
        # Messages, and for whom, that sockets did not take.
        self._late: deque[tuple[Address, bytes]] = deque()
        self._lock = threading.Lock()

    def is_taken(self, address: Address) -> bool:
        """Whether a worker is still there, as far as the master knows."""
        board = self.exchange
        return bool(board.taken[address.seat] and board.generation[address.seat] == address.generation)

    def rank(self) -> int:
        """How many older workers there are; it only falls, so who may compute once may always."""
        board = self.exchange
        return int((board.taken * (board.generation < self.address.generation)).sum())

    def n_workers(self) -> int:
        """How many workers have a seat."""
        return int(self.exchange.taken.sum())

    def leave(self) -> None:
        """Gives the seat up and tells the others; by the worker itself, or by the master when it is gone."""
        if not self.is_taken(self.address):
            return
        board, seat = self.exchange, self.address.seat
        board.accepts[seat] = board.waiting_tokens[seat] = board.taken[seat] = 0
        self.say_arriving(0, 0)
        for other in np.flatnonzero(board.taken):
            self._wake(int(other))

    def say_waiting(self, n_tokens: int) -> None:
        """Tells the others how many tokens wait for a core."""
        self.exchange.waiting_tokens[self.address.seat] = n_tokens

    def say_arriving(self, n_tokens: int, n_bytes: int) -> None:
        """Tells the others what this worker holds of requests: a guess at the tokens not read yet, and all bytes."""
        self.exchange.arriving_tokens[self.address.seat] = n_tokens
        self.exchange.arriving_bytes[self.address.seat] = n_bytes

    def say_answered(self, n_tokens: int) -> None:
        """Tells the others that so many more tokens were answered."""
        self.exchange.answered_tokens[self.address.seat] += n_tokens

    def say_accepts(self, *, accepts: bool) -> None:
        """Tells the others whether this worker takes a batch; if it does from now on, those who have one are woken.

        It is said before it is seen who has one, and `say_waiting` before it is seen who accepts: so one of both
        notices the other.
        """
        board, seat = self.exchange, self.address.seat
        was_accepting = board.accepts[seat]
        board.accepts[seat] = accepts
        if accepts and not was_accepting:
            for other in map(int, np.flatnonzero(board.waiting_tokens * board.taken)):
                if other != seat:
                    self._wake(other)

    def n_accepting(self) -> int:
        """How many of the others take a batch."""
        accepting = self.exchange.accepts * self.exchange.taken
        return int(accepting.sum() - accepting[self.address.seat])

    def wake_self(self) -> None:
        """Makes `receive` return."""
        self._wake(self.address.seat)

    def send_batch(self, number: int, place: int, n_prompt_tokens: int, ids: Sequence[Ids]) -> Address | None:
        """Sends a batch to one of the others that accepts.

        Two workers may choose the same one at the same moment: then one batch waits there for the other.

        Args:
            number: What the answer shall call it.
            place: Of its backend in the registry.
            n_prompt_tokens: See `Backend.embed`.
            ids: Of each text, int64, (n_tokens,); see `can_travel`.

        Returns:
            Who has it now; None if nobody took it.
        """
        body = np.concatenate([[len(ids)], [len(text) for text in ids], *ids]).astype(np.int32).tobytes()
        board = self.exchange
        for seat in map(int, np.flatnonzero(board.accepts * board.taken)):
            to = Address(seat, int(board.generation[seat]))
            if seat == self.address.seat:
                continue
            # Before it is sent: afterwards it could take back what the receiver has said since.
            board.accepts[seat] = 0
            if self._try(seat, self._header(_BATCH, to, number, place, n_prompt_tokens) + body):
                return to
            board.accepts[seat] = 1
        return None

    def can_travel(self, ids: Sequence[Ids]) -> bool:
        """Whether a batch of these texts fits into a message."""
        return _HEADER.size + 4 * (1 + sum(len(text) + 1 for text in ids)) <= self.exchange.max_message

    def send_vectors(self, order: Order, vectors: Vectors) -> None:
        """Answers an order; returns at once, however slow the receiver is.

        Args:
            order: What was computed.
            vectors: float32, (n_texts, dim).
        """
        components = np.ascontiguousarray(vectors).reshape(-1)
        step = (self.exchange.max_message // 2 - _HEADER.size) // components.itemsize
        for start in range(0, len(components), step):
            header = self._header(_VECTORS, order.sender, order.number, start)
            self._send(order.sender, header + components[start : start + step].tobytes())

    def send_back(self, order: Order, why: Undone) -> None:
        """Tells who sent an order that it will not be computed here."""
        self._send(order.sender, self._header(_UNDONE, order.sender, order.number, why))

    def receive(self) -> Wake | Order | Delivery | News | None:
        """Waits for a message; None for one that was meant for an earlier worker on this seat."""
        self._send_late()
        n_bytes = self._inbox.recv_into(self._buffer)
        kind, seat, generation, for_generation, number, first, second = _HEADER.unpack_from(self._buffer)
        if kind == _WAKE:
            return Wake()
        if for_generation != self.address.generation:
            return None
        sender = Address(seat, generation)
        body = self._buffer[_HEADER.size : n_bytes]
        if kind == _BATCH:
            return Order(sender, number, first, second, _ids(body))
        if kind == _VECTORS:
            return Delivery(sender, number, first, np.frombuffer(body, dtype=np.float32).copy())
        return News(sender, number, Undone(first))

    def _header(self, kind: int, to: Address, number: int = 0, first: int = 0, second: int = 0) -> bytes:
        return _HEADER.pack(kind, *self.address, to.generation, number, first, second)

    def _wake(self, seat: int) -> None:
        """A full inbox needs no waking: whoever reads it looks around after every message."""
        self._try(seat, self._header(_WAKE, Address(seat, 0)))

    def _try(self, seat: int, message: bytes) -> bool:
        """Whether the socket took the message; most often it does not because it is full."""
        try:
            self.exchange.inboxes[seat][1].send(message, socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def _send(self, to: Address, message: bytes) -> None:
        if not self._try(to.seat, message):
            with self._lock:
                self._late.append((to, message))
            self.wake_self()

    def _send_late(self) -> None:
        """Sends what sockets take by now, until there is something to receive or nothing left to send."""
        while self._late:
            with self._lock:
                late, self._late = self._late, deque()
                for to, message in late:
                    if self.is_taken(to) and not self._try(to.seat, message):
                        self._late.append((to, message))
                n_sent = len(late) - len(self._late)
                waiting_for = {to.seat for to, _ in self._late}
            poll = select.poll()
            poll.register(self._inbox, select.POLLIN)
            if n_sent:
                for seat in waiting_for:
                    poll.register(self.exchange.inboxes[seat][1], select.POLLOUT)
            if any(fd == self._inbox.fileno() for fd, _ in poll.poll(_AGAIN_MS)):
                return


def _ids(body: memoryview) -> list[Ids]:
    """The ids of each text of a batch, int64, (n_tokens,)."""
    numbers = np.frombuffer(body, dtype=np.int32).astype(np.int64)
    n_texts = int(numbers[0])
    ends = np.cumsum(numbers[1 : n_texts + 1])
    return np.split(numbers[n_texts + 1 :], ends[:-1])
