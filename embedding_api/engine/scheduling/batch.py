"""A batch of this worker, and where it is."""

import enum

from embedding_api.engine.scheduling.job import Text
from embedding_api.engine.scheduling.lane import LaneQueue
from embedding_api.engine.scheduling.timing import Trip
from embedding_api.engine.work import Address, Work


class State(enum.Enum):
    """Where a batch is."""

    # It waits for this worker's core.
    DUE = enum.auto()
    # This worker's core computes it.
    RUNNING = enum.auto()
    # Another worker has it.
    AWAY = enum.auto()
    # It was answered, it failed, or its texts wait again.
    ENDED = enum.auto()


class Batch:
    """Texts of this worker that are computed together.

    Attributes:
        work: What a core gets.
        n_tokens: Tokens of its texts.
        state: Where it is.
        worker: The worker that has it.
        begun_s: When that worker got it, in seconds on the monotonic clock.
    """

    __slots__ = ("_name", "_trip", "begun_s", "n_tokens", "queue", "state", "texts", "work", "worker")

    def __init__(self, work: Work, queue: LaneQueue, texts: list[Text], name: str) -> None:
        self.work = work
        self.queue = queue
        self.texts = texts
        self.n_tokens = sum(map(len, work.inputs))
        self.state = State.DUE
        self.worker = work.owner
        self.begun_s = 0.0
        self._name = name
        self._trip: Trip | None = None

    def begin(self, worker: Address, state: State, now_s: float) -> None:
        """Note that a worker has it."""
        self.worker, self.state, self.begun_s = worker, state, now_s
        trip = self._trip = Trip(self._name, len(self.texts), self.n_tokens, worker.seat, now_s)
        for text in self.texts:
            text.trip = trip
            for job, _ in text.wanted_by:
                job.begin(trip)

    def end(self, now_s: float) -> None:
        """Note that no worker has it any more."""
        self.state = State.ENDED
        if self._trip is not None:
            self._trip.ended_s = now_s
        for text in self.texts:
            text.trip = None
