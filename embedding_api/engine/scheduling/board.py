"""What the workers of a server tell each other: a few numbers of each, which all can read and write at once.

Each number is eight aligned bytes, which the processor writes whole. The worker writes its own, except for
`accepts`, which others clear, and for what the master writes when the worker starts or has ended.
"""

from typing import NamedTuple

from embedding_api.engine.work import Address


class Columns(NamedTuple):
    """The numbers of the workers: a column each, int64, (n_seats,).

    Attributes:
        is_taken: 1 if a worker has the seat.
        generation: Of the worker that has it, or had it last.
        accepts: 1 if that worker accepts a batch of another.
        waiting_tokens: Tokens of its texts that are in no batch.
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


# Bytes of the numbers of one worker.
BYTES_PER_SEAT = 8 * len(Columns._fields)


class Board:
    """The numbers of all workers.

    Args:
        memory: Zeroed bytes that all workers share, BYTES_PER_SEAT for each seat: for the most workers at one time.

    Attributes:
        columns: The numbers.
    """

    def __init__(self, memory: memoryview) -> None:
        n_seats = len(memory) // BYTES_PER_SEAT
        cells = memory.cast("q")
        self.columns = Columns(*(cells[start : start + n_seats] for start in range(0, len(cells), n_seats)))

    def take_seat(self) -> "Seat | None":
        """Return a free seat for a new worker; None if all are taken. One process takes seats: the master."""
        columns = self.columns
        free = next((seat for seat, is_taken in enumerate(columns.is_taken) if not is_taken), None)
        if free is None:
            return None
        columns.generation[free] = max(columns.generation) + 1
        columns.accepts[free] = 0
        columns.is_taken[free] = 1
        return Seat(self, Address(free, columns.generation[free]))

    def is_present(self, worker: Address) -> bool:
        """Return False once the worker has left its seat, or the master has done so after the worker's end."""
        columns = self.columns
        return bool(columns.is_taken[worker.seat]) and columns.generation[worker.seat] == worker.generation

    def workers(self) -> list[Address]:
        """Return all workers."""
        generation = self.columns.generation
        return [Address(seat, generation[seat]) for seat, is_taken in enumerate(self.columns.is_taken) if is_taken]


class Seat:
    """A worker's place on the board. Any thread may use it, but `count_answered` needs a lock.

    Attributes:
        board: All seats.
        address: The worker that has this one.
    """

    def __init__(self, board: Board, address: Address) -> None:
        self.board = board
        self.address = address

    def leave(self) -> None:
        """Leave the seat: the worker itself, or the master when the worker has ended."""
        columns, seat = self.board.columns, self.address.seat
        if self.board.is_present(self.address):
            for column in (columns.accepts, columns.waiting_tokens, columns.arriving_tokens, columns.arriving_bytes):
                column[seat] = 0
            columns.is_taken[seat] = 0

    def rank(self) -> int:
        """Return the number of older workers. It never rises, so a worker that may compute keeps this right."""
        return sum(worker.generation < self.address.generation for worker in self.board.workers())

    def has_other_among(self, n_oldest: int) -> bool:
        """Return True if another worker is one of the oldest."""
        return min(n_oldest, len(self.board.workers())) > (self.rank() < n_oldest)

    def accepting(self) -> list[Address]:
        """Return the other workers that accept a batch."""
        accepts = self.board.columns.accepts
        return [worker for worker in self.board.workers() if accepts[worker.seat] and worker != self.address]

    def waiting(self) -> list[Address]:
        """Return the other workers in which texts wait."""
        waiting = self.board.columns.waiting_tokens
        return [worker for worker in self.board.workers() if waiting[worker.seat] and worker != self.address]

    def claim(self, worker: Address) -> None:
        """Note that a worker gets a batch, and accepts no other until it says so again.

        Two workers may claim the same one at the same moment: then one of their batches waits there.
        """
        self.board.columns.accepts[worker.seat] = 0

    def publish_waiting(self, n_tokens: int) -> None:
        """Tell the others how many tokens wait in this worker."""
        self.board.columns.waiting_tokens[self.address.seat] = n_tokens

    def publish_accepts(self, *, accepts: bool) -> bool:
        """Tell the others if this worker accepts a batch. Return True if it did not before, and does now."""
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
        """Add to the tokens that this worker has answered."""
        self.board.columns.answered_tokens[self.address.seat] += n_tokens
