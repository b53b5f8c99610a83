"""The board: a few numbers of each worker, in memory that all workers read and write at once.

Each number is eight aligned bytes, which the processor writes whole; each is one process's to write, but for `accepts`.
"""

import mmap
from typing import NamedTuple

from embedding_api.engine.work import Address


class Columns(NamedTuple):
    """The numbers of the workers: a column each, int64, (n_seats,).

    Attributes:
        is_taken: 1 if a worker has the seat.
        generation: Of the worker that has it, or had it last.
        accepts: 1 if that worker accepts a batch of another.
        waiting_tokens: Tokens of its texts that no core has.
        arriving_tokens: A guess at the tokens of the requests that it holds and has not read.
        arriving_bytes: The bytes of the requests that it holds.
        answered_tokens: Tokens that all workers which ever had the seat have answered. It never falls.
    """

    is_taken: memoryview
    generation: memoryview
    accepts: memoryview
    waiting_tokens: memoryview
    arriving_tokens: memoryview
    arriving_bytes: memoryview
    answered_tokens: memoryview


class Board:
    """The numbers of all workers. Make it before the fork.

    Args:
        n_seats: The most workers at one time.
    """

    def __init__(self, n_seats: int) -> None:
        n_columns = len(Columns._fields)
        memory = memoryview(mmap.mmap(-1, 8 * n_columns * n_seats)).cast("q")
        self.columns = Columns(*(memory[start : start + n_seats] for start in range(0, len(memory), n_seats)))
        self._seats = range(n_seats)

    def take_seat(self) -> "Seat | None":
        """Return a free seat for a new worker; None if all are taken. One process takes seats: the master."""
        columns = self.columns
        free = next((seat for seat in self._seats if not columns.is_taken[seat]), None)
        if free is None:
            return None
        columns.generation[free] = max(columns.generation) + 1
        columns.accepts[free] = 0
        columns.is_taken[free] = 1
        return Seat(self, Address(free, columns.generation[free]))

    def is_present(self, worker: Address) -> bool:
        """Return False once the worker has given up its seat."""
        columns = self.columns
        return bool(columns.is_taken[worker.seat]) and columns.generation[worker.seat] == worker.generation

    @property
    def waiting_tokens(self) -> int:
        """See `Load`."""
        return sum(self.columns.waiting_tokens)

    @property
    def arriving_tokens(self) -> int:
        """See `Load`."""
        return sum(self.columns.arriving_tokens)

    @property
    def arriving_bytes(self) -> int:
        """See `Load`."""
        return sum(self.columns.arriving_bytes)

    @property
    def answered_tokens(self) -> int:
        """See `Load`."""
        return sum(self.columns.answered_tokens)

    def workers(self) -> list[Address]:
        """Return all workers."""
        columns = self.columns
        return [Address(seat, columns.generation[seat]) for seat in self._seats if columns.is_taken[seat]]


class Seat:
    """A worker's place on the board; see `Neighbours`. Any thread may use it.

    Attributes:
        board: All seats.
        address: Of the worker that has this one.
    """

    def __init__(self, board: Board, address: Address) -> None:
        self.board = board
        self.address = address

    def leave(self) -> None:
        """Give the seat up: the worker itself, or the master when the worker is gone."""
        columns, seat = self.board.columns, self.address.seat
        if self.board.is_present(self.address):
            for column in (columns.accepts, columns.waiting_tokens, columns.arriving_tokens, columns.arriving_bytes):
                column[seat] = 0
            columns.is_taken[seat] = 0

    def rank(self) -> int:
        """See `Neighbours`."""
        return sum(worker.generation < self.address.generation for worker in self.board.workers())

    def n_workers(self) -> int:
        """See `Neighbours`."""
        return sum(self.board.columns.is_taken)

    def is_present(self, worker: Address) -> bool:
        """See `Neighbours`."""
        return self.board.is_present(worker)

    def accepting(self) -> list[Address]:
        """See `Neighbours`."""
        accepts = self.board.columns.accepts
        return [worker for worker in self.board.workers() if accepts[worker.seat] and worker != self.address]

    def claim(self, worker: Address) -> None:
        """See `Neighbours`. Two workers may claim the same one at the same moment: then one of their batches waits."""
        self.board.columns.accepts[worker.seat] = 0

    def waiting(self) -> list[int]:
        """See `Neighbours`."""
        waiting = self.board.columns.waiting_tokens
        return [worker.seat for worker in self.board.workers() if waiting[worker.seat] and worker != self.address]

    def publish_waiting(self, n_tokens: int) -> None:
        """See `Neighbours`."""
        self.board.columns.waiting_tokens[self.address.seat] = n_tokens

    def publish_accepts(self, *, accepts: bool) -> bool:
        """See `Neighbours`."""
        column, seat = self.board.columns.accepts, self.address.seat
        is_new = accepts and not column[seat]
        column[seat] = accepts
        return is_new

    def publish_arriving(self, n_tokens: int, n_bytes: int) -> None:
        """Tell the others what this worker holds of requests.

        Args:
            n_tokens: A guess at the tokens of those that it has not read.
            n_bytes: The bytes of all that are not answered.
        """
        self.board.columns.arriving_tokens[self.address.seat] = n_tokens
        self.board.columns.arriving_bytes[self.address.seat] = n_bytes

    def count_answered(self, n_tokens: int) -> None:
        """See `Neighbours`."""
        self.board.columns.answered_tokens[self.address.seat] += n_tokens
