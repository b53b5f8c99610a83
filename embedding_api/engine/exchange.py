"""The way between workers: who sits where, who is idle, and sockets over which batches and vectors travel.

Made in the master, so that all workers inherit it and no other process can write to it. The kernel keeps messages
whole and in order, so a worker that is killed while it sends or receives breaks nothing. What a worker says of itself
on the board only decides where batches go, never whether they are computed: that hangs on `Seat.is_taken` alone.
"""

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

from embedding_api.engine.arrays import Ids, Vectors

# Linux alone has sockets that keep messages whole and in order and say when a receiver is slow.
WORKERS_CAN_SEND = sys.platform == "linux"
_SOCKET_TYPE = socket.SOCK_SEQPACKET if WORKERS_CAN_SEND else socket.SOCK_DGRAM

# Bytes of the largest message. A socket's buffer takes 212,992 by default; what it does not take waits in the sender.
_MAX_MESSAGE = 65_536

# Kind of message; seat and generation of who sends; generation of who shall read it; number of the batch; two numbers
# that depend on the kind.
_HEADER = struct.Struct("=BHQQQII")
_WAKE, _BATCH, _VECTORS, _FAILED = range(4)


class Address(NamedTuple):
    """A worker: the seat it has, and how many had it before."""

    seat: int
    generation: int


class Wake(NamedTuple):
    """Something changed: a core is idle, or a worker is gone."""


class Order(NamedTuple):
    """A batch to compute for another worker.

    Attributes:
        sender: Who wants the vectors.
        number: What the sender calls the batch.
        model: Its place in the registry.
        n_prompt_tokens: See `Backend.embed`.
        ids: Of each text, int64, (n_tokens,).
    """

    sender: Address
    number: int
    model: int
    n_prompt_tokens: int
    ids: list[Ids]


class Delivery(NamedTuple):
    """Some components of a batch that another worker computed, or the news that it failed.

    Attributes:
        sender: Who computed it.
        number: What the receiver calls the batch.
        start: Place of the first component, counted over all rows.
        components: float32, (n,); None if the batch failed.
    """

    sender: Address
    number: int
    start: int
    components: Vectors | None


class Exchange:
    """Seats for workers that send each other batches. Make it before the fork.

    Args:
        n_seats: The most workers at one time.
    """

    def __init__(self, n_seats: int) -> None:
        self.inboxes = [socket.socketpair(socket.AF_UNIX, _SOCKET_TYPE) for _ in range(n_seats)]
        # One number a worker, shared by all processes; aligned integers are written whole.
        board = np.frombuffer(mmap.mmap(-1, 4 * 8 * n_seats), dtype=np.int64).reshape(4, n_seats)
        self.taken, self.generation, self.idle, self.waiting_tokens = board

    def take_seat(self) -> "Seat | None":
        """A free seat, for the process that calls or one that it forks; None if all are taken.

        One process takes seats: the master.
        """
        free = np.flatnonzero(self.taken == 0)
        if not len(free):
            return None
        seat = int(free[0])
        self.generation[seat] += 1
        self.taken[seat] = 1
        return Seat(self, Address(seat, int(self.generation[seat])))

    def close(self) -> None:
        """Closes the sockets of this process."""
        for reader, writer in self.inboxes:
            reader.close()
            writer.close()


class Seat:
    """A worker's place on the exchange. One thread receives; any may do the rest."""

    def __init__(self, exchange: Exchange, address: Address) -> None:
        self.exchange = exchange
        self.address = address
        self._inbox = exchange.inboxes[address.seat][0]
        self._buffer = memoryview(bytearray(_MAX_MESSAGE))
        # Messages, and for whom, whose inboxes were full.
        self._late: deque[tuple[int, bytes]] = deque()
        self._lock = threading.Lock()

    def is_taken(self, address: Address) -> bool:
        """Whether a worker is still there, as far as the master knows."""
        board = self.exchange
        return bool(board.taken[address.seat] and board.generation[address.seat] == address.generation)

    def rank(self) -> int:
        """How many workers have a seat before this one."""
        return int(self.exchange.taken[: self.address.seat].sum())

    def leave(self) -> None:
        """Gives the seat up and tells the others; by the worker itself, or by the master when it is gone."""
        if not self.is_taken(self.address):
            return
        seat = self.address.seat
        self.exchange.idle[seat] = self.exchange.waiting_tokens[seat] = self.exchange.taken[seat] = 0
        for other in np.flatnonzero(self.exchange.taken):
            self._wake(int(other))

    def say(self, *, idle: bool, waiting_tokens: int) -> None:
        """Tells the others whether this worker's core is free, and how many tokens wait for one."""
        self.exchange.idle[self.address.seat] = idle
        self.exchange.waiting_tokens[self.address.seat] = waiting_tokens

    def n_idle(self) -> int:
        """How many of the others have said that their core is free."""
        return int(self.exchange.idle.sum() - self.exchange.idle[self.address.seat])

    def claim_idle(self) -> Address | None:
        """One of the others whose core is free, and from now on taken; None if there is none.

        Two workers may claim the same one at the same moment: then one batch waits for the other.
        """
        for seat in map(int, np.flatnonzero(self.exchange.idle & self.exchange.taken)):
            if seat != self.address.seat:
                self.exchange.idle[seat] = 0
                return Address(seat, int(self.exchange.generation[seat]))
        return None

    def offer_core(self) -> None:
        """Wakes the one of the others for whom the most tokens wait, if there is one."""
        waiting = self.exchange.waiting_tokens * self.exchange.taken
        waiting[self.address.seat] = 0
        if waiting.any():
            self._wake(int(waiting.argmax()))

    def wake_self(self) -> None:
        """Makes `receive` return."""
        self._wake(self.address.seat)

    def send_batch(self, to: Address, number: int, model: int, n_prompt_tokens: int, ids: Sequence[Ids]) -> bool:
        """Sends a batch; False if it is too large to travel, or the receiver's inbox is full.

        Args:
            to: Who shall compute it.
            number: What the answer shall call it.
            model: Its place in the registry.
            n_prompt_tokens: See `Backend.embed`.
            ids: Of each text, int64, (n_tokens,).
        """
        numbers = np.concatenate([[len(ids)], [len(text) for text in ids], *ids])
        header = self._header(_BATCH, to, number, model, n_prompt_tokens)
        message = header + numbers.astype(np.int32).tobytes()
        return len(message) <= _MAX_MESSAGE and self._try(to.seat, message)

    def send_vectors(self, order: Order, vectors: Vectors) -> None:
        """Answers an order; returns at once, however slow the receiver is.

        Args:
            order: What was computed.
            vectors: float32, (n_texts, dim).
        """
        components = np.ascontiguousarray(vectors).reshape(-1)
        step = (_MAX_MESSAGE - _HEADER.size) // components.itemsize
        for start in range(0, len(components), step):
            header = self._header(_VECTORS, order.sender, order.number, start)
            self._send(order.sender.seat, header + components[start : start + step].tobytes())

    def send_failure(self, order: Order) -> None:
        """Tells who sent an order that computing it failed."""
        self._send(order.sender.seat, self._header(_FAILED, order.sender, order.number))

    def receive(self) -> Wake | Order | Delivery | None:
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
        return Delivery(sender, number, 0, None)

    def _header(self, kind: int, to: Address, number: int = 0, first: int = 0, second: int = 0) -> bytes:
        return _HEADER.pack(kind, *self.address, to.generation, number, first, second)

    def _wake(self, seat: int) -> None:
        """A full inbox needs no waking: whoever reads it looks around after every message."""
        self._try(seat, self._header(_WAKE, Address(seat, 0)))

    def _try(self, seat: int, message: bytes) -> bool:
        try:
            self.exchange.inboxes[seat][1].send(message, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def _send(self, seat: int, message: bytes) -> None:
        if not self._try(seat, message):
            with self._lock:
                self._late.append((seat, message))
            self.wake_self()

    def _send_late(self) -> None:
        """Sends what inboxes take by now, until there is something to receive or nothing left to send."""
        while self._late:
            with self._lock:
                late, self._late = self._late, deque()
                self._late.extend(item for item in late if not self._try(*item))
                waiting_for = {seat for seat, _ in self._late}
            poll = select.poll()
            poll.register(self._inbox, select.POLLIN)
            for seat in waiting_for:
                poll.register(self.exchange.inboxes[seat][1], select.POLLOUT)
            if any(fd == self._inbox.fileno() for fd, _ in poll.poll()):
                return


def _ids(body: memoryview) -> list[Ids]:
    """The ids of each text of a batch, int64, (n_tokens,)."""
    numbers = np.frombuffer(body, dtype=np.int32).astype(np.int64)
    n_texts = int(numbers[0])
    ends = np.cumsum(numbers[1 : n_texts + 1])
    return np.split(numbers[n_texts + 1 :], ends[:-1])
