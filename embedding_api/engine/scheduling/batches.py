"""The batches of this worker that have not ended, and where each is."""

from embedding_api.engine.scheduling.actions import Action, Answer
from embedding_api.engine.scheduling.backlog import Backlog, Batch, State
from embedding_api.engine.scheduling.board import Seat
from embedding_api.engine.work import Address, Result, Undone
from embedding_api.errors import DeadlineExceededError, EngineError, ServiceError


class Batches:
    """The batches of this worker. Each ends once: with a result, with an error, or undone; then its texts wait again.

    Args:
        backlog: Forms them, and takes them back.
        seat: Where it says what is answered, and sees which workers are gone.
    """

    def __init__(self, backlog: Backlog, seat: Seat) -> None:
        self._backlog = backlog
        self._seat = seat
        self._batches: dict[int, Batch] = {}

    def __getitem__(self, number: int) -> Batch:
        return self._batches[number]

    def form(self, n_cores: int) -> Batch | None:
        """Return a new batch; None if no text waits. See `Backlog.pop_batch`."""
        batch = self._backlog.pop_batch(n_cores)
        if batch is not None:
            self._batches[batch.work.number] = batch
        return batch

    def in_state(self, state: State) -> list[Batch]:
        """Return the batches in this state."""
        return [batch for batch in self._batches.values() if batch.state is state]

    def lost(self) -> list[Batch]:
        """Return the batches whose worker is gone."""
        return [batch for batch in self.in_state(State.AWAY) if not self._seat.board.is_present(batch.worker)]

    def find_away(self, number: int, worker: Address) -> Batch | None:
        """Return a batch that this worker has; None if it was given up there, and is computed again.

        A result that comes nevertheless is as good as the other, and is not needed.
        """
        batch = self._batches.get(number)
        return batch if batch is not None and batch.state is State.AWAY and batch.worker == worker else None

    def answer(self, batch: Batch, result: Result, now_s: float) -> list[Action]:
        """End a batch that was computed."""
        del self._batches[batch.work.number]
        self._seat.count_answered(batch.n_tokens)
        return [Answer(job) for job in self._backlog.answer(batch, result, now_s)]

    def undo(self, batch: Batch, why: Undone, now_s: float, error: Exception | None = None) -> list[Action]:
        """End a batch that was not computed. Its texts wait again, except one that failed or hung alone."""
        del self._batches[batch.work.number]
        if why is Undone.NOT_BEGUN:
            self._backlog.give_back(batch, now_s)
            return []
        error = error or (_hung_error() if why is Undone.HUNG else EngineError("another worker could not compute it"))
        return [Answer(job) for job in self._backlog.fail(batch, error, now_s)]

    def give_up(self, batch: Batch, error: ServiceError, now_s: float) -> list[Action]:
        """End a batch that no worker will compute."""
        del self._batches[batch.work.number]
        return [Answer(job) for job in self._backlog.give_up(batch, error, now_s)]

    def refuse_waiting(self, error: ServiceError, now_s: float) -> list[Action]:
        """Answer the jobs whose texts wait with an error."""
        refused = self._backlog.refuse_waiting(error, now_s)
        self._seat.publish_waiting(self._backlog.n_waiting_tokens)
        return [Answer(job) for job in refused]


def _hung_error() -> DeadlineExceededError:
    return DeadlineExceededError(
        "the request was not answered: one of its texts was not computed within INFERENCE_TIMEOUT_S; leave that text "
        "out, or raise INFERENCE_TIMEOUT_S"
    )
