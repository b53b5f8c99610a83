"""What the workers of a server tell each other: a few numbers of each, which all can read and write at once.

Each number is eight aligned bytes, which the processor writes whole. The worker writes its own, except for `is_idle`
and `room_tokens`, which others lower, and for what the master writes when the worker starts or has ended.
"""

from typing import NamedTuple

from embedding_api.engine.work import Address


class Columns(NamedTuple):
    """The numbers of the workers: a column each, int64, (n_seats,).

    Attributes:
        is_taken: 1 if a worker has the seat.
        generation: Of the worker that has it, or had it last.
        is_idle: 1 if that worker's core is idle, and nothing waits for it.
        room_tokens: Tokens of other workers' texts that it would take for its next batch; below 0 if more waits for its
            core already; NO_ROOM, or less after claims, if its core computes nothing.
        waiting_tokens: Tokens of its texts that are in no batch.
        arriving_tokens: A guess at the tokens of the requests that it holds and has not read.
        arriving_bytes: The bytes of the requests that it holds.
        n_connections: Connections that it has, weighted; NO_MORE if it takes no new one.
        answered_tokens: Tokens that all workers which ever had the seat have answered. It never falls.
    """

    is_taken: memoryview
    generation: memoryview
    is_idle: memoryview
    room_tokens: memoryview
    waiting_tokens: memoryview
    arriving_tokens: memoryview
    arriving_bytes: memoryview
    n_connections: memoryview
    answered_tokens: memoryview


# More connections than a worker can have.
NO_MORE = 2**62

# Below what claims can leave of the room of a worker that computes.
NO_ROOM = -(2**61)

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
        columns.is_idle[free], columns.room_tokens[free] = 0, NO_ROOM
        columns.n_connections[free] = NO_MORE
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
            for name in columns._fields:
                if name not in ("is_taken", "generation", "answered_tokens"):
                    getattr(columns, name)[seat] = 0
            columns.is_taken[seat] = 0

    def waiting(self) -> list[Address]:
        """Return the other workers in which texts wait."""
        waiting = self.board.columns.waiting_tokens
        return [worker for worker in self.board.workers() if waiting[worker.seat] and worker != self.address]

    def claim(self, worker: Address, n_tokens: int) -> None:
        """Note that a worker gets a batch of so many tokens.

        Two workers may claim the same room at the same moment: then one of their batches waits there.
        """
        self.board.columns.is_idle[worker.seat] = 0
        self.board.columns.room_tokens[worker.seat] -= n_tokens

    def publish_waiting(self, n_tokens: int) -> None:
        """Tell the others how many tokens wait in this worker."""
        self.board.columns.waiting_tokens[self.address.seat] = n_tokens

    def publish_room(self, n_tokens: int, *, is_idle: bool) -> bool:
        """Tell the others how much room this worker has. Return True if one with waiting texts should hear of it.

        Args:
            n_tokens: See `Columns.room_tokens`.
            is_idle: See `Columns.is_idle`.
        """
        columns, seat = self.board.columns, self.address.seat
        is_new = (is_idle and not columns.is_idle[seat]) or columns.room_tokens[seat] <= 0 < n_tokens
        columns.is_idle[seat], columns.room_tokens[seat] = is_idle, n_tokens
        return is_new

    def publish_arriving(self, n_tokens: int, n_bytes: int) -> None:
        """Tell the others what this worker holds of requests.

        Args:
            n_tokens: A guess at the tokens of those that it has not read.
            n_bytes: The bytes of all that are not answered.
        """
        self.board.columns.arriving_tokens[self.address.seat] = n_tokens
        self.board.columns.arriving_bytes[self.address.seat] = n_bytes

    def publish_connections(self, n_connections: int) -> None:
        """Tell the others of this worker's connections; see `Columns.n_connections`."""
        self.board.columns.n_connections[self.address.seat] = n_connections

    def has_fewest_connections(self) -> bool:
        """Return False if another worker has fewer and should take the next connection."""
        board, n_connections = self.board, self.board.columns.n_connections
        return n_connections[self.address.seat] <= min(n_connections[worker.seat] for worker in board.workers())

    def count_answered(self, n_tokens: int) -> None:
        """Add to the tokens that this worker has answered."""
        self.board.columns.answered_tokens[self.address.seat] += n_tokens
