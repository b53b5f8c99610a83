"""A batch of this worker, and where it is."""

import enum

from embedding_api.engine.scheduling.job import Text
from embedding_api.engine.scheduling.lane import LaneQueue
from embedding_api.engine.scheduling.timing import BatchRun
from embedding_api.engine.work import Address, Work


class BatchState(enum.Enum):
    """Where a batch is."""

    # No core has it yet: it is about to be sent, or waits for this worker's core.
    FORMED = enum.auto()
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
        handed_over_s: When it was sent to that worker, or this worker's core got it, on the monotonic clock.
    """

    __slots__ = ("_name", "_run", "handed_over_s", "n_tokens", "queue", "state", "texts", "work", "worker")

    def __init__(self, work: Work, queue: LaneQueue, texts: list[Text], name: str) -> None:
        self.work = work
        self.queue = queue
        self.texts = texts
        self.n_tokens = sum(map(len, work.inputs))
        self.state = BatchState.FORMED
        self.worker = work.owner
        self.handed_over_s = 0.0
        self._name = name
        self._run: BatchRun | None = None

    def hand_over(self, worker: Address, state: BatchState, now_s: float) -> None:
        """Note that it was sent to another worker, or that this worker's core has it."""
        self.worker, self.state, self.handed_over_s = worker, state, now_s
        run = self._run = BatchRun(self._name, len(self.texts), self.n_tokens, worker.seat, now_s)
        for text in self.texts:
            text.run = run
            for job, _ in text.wanted_by:
                job.note_run(run)

    def end(self, now_s: float) -> None:
        """Note that no worker has it now."""
        self.state = BatchState.ENDED
        if self._run is not None:
            self._run.ended_s = now_s
        for text in self.texts:
            text.run = None
