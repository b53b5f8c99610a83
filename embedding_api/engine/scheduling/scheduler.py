"""Decides which texts are computed where. It has no thread, no socket and no clock of its own."""

from collections import deque
from collections.abc import Sequence

from embedding_api.engine.scheduling.actions import Action, Answer, Compute, Send, SendBack, Wake
from embedding_api.engine.scheduling.backlog import Backlog
from embedding_api.engine.scheduling.batch import Batch, BatchState
from embedding_api.engine.scheduling.board import Seat
from embedding_api.engine.scheduling.job import Job
from embedding_api.engine.scheduling.phase import SchedulerPhase
from embedding_api.engine.work import Address, Ids, Lane, Result, Undone, Work
from embedding_api.errors import DeadlineExceededError, EngineError, NotReadyError


class Scheduler:
    """As long as this worker lives, each accepted text is answered exactly once, none starves, none is counted twice.

    A batch is formed when a core is free for it and not before, so that texts which come meanwhile join it. This
    worker's own core comes first, then the cores of workers that accept a batch. Each event has a method, which returns
    the actions to carry out, in order, before the next event; but `unsent` is reported at once, before later actions.

    Not safe for threads. Times are in seconds on one monotonic clock.

    Args:
        backlog: Empty, and owned by this worker.
        seat: This worker's place among the others.
        n_computing: How many workers compute at the same time; the younger ones send all that fits into a message.
        max_sent_ids: The most token ids of a batch that can be sent, with one number more for each text.
    """

    def __init__(self, backlog: Backlog, seat: Seat, n_computing: int, max_sent_ids: int) -> None:
        self.phase = SchedulerPhase.SERVING
        self._backlog = backlog
        self._seat, self._n_computing = seat, n_computing
        self._max_sent_ids = max_sent_ids
        # Batches for this core, whoever else may compute: those of others, and own ones that cannot go elsewhere.
        self._kept: deque[Work] = deque()
        self._running: Work | None = None
        self._ran_for_other = False

    @property
    def is_accepting(self) -> bool:
        """False once it ends: then a new job is refused."""
        return self.phase in (SchedulerPhase.SERVING, SchedulerPhase.BROKEN)

    def may_compute(self) -> bool:
        """Return True if this worker's core computes its own texts."""
        return self.phase is SchedulerPhase.SERVING and self._seat.rank() < self._n_computing

    def accept(self, job: Job, lane: Lane, inputs: Sequence[Ids], now_s: float) -> Sequence[Action]:
        """A request came: its job is answered later, at the latest when this worker ends. For `inputs` see `Work`."""
        if not self.is_accepting:
            job.fail(NotReadyError("this worker is stopping"), now_s)
            return [Answer(job)]
        self._backlog.add(job, lane, inputs)
        return self._match(now_s)

    def abandon(self, job: Job, error: Exception, now_s: float) -> Sequence[Action]:
        """The client of a job left, or its time is over: drop its waiting texts, except those that others want."""
        return [*self._backlog.abandon(job, error, now_s), *self._match(now_s)]

    def idle(self, now_s: float) -> Sequence[Action]:
        """This worker's core is idle: report this after each other event, too, until a `Compute` follows."""
        if self.phase is SchedulerPhase.CLOSED:
            return []
        self._running = work = self._next_work()
        if work is None:
            return self._match(now_s)
        self._ran_for_other = not self._is_own(work)
        if self._is_own(work):
            self._backlog.batch(work.number).hand_over(work.owner, BatchState.RUNNING, now_s)
        return [Compute(work), *self._match(now_s)]

    def computed(self, work: Work, result: Result, now_s: float) -> Sequence[Action]:
        """The core has computed its batch. Nothing follows if the batch was given up meanwhile."""
        if self._running is not work:
            return []
        self._running = None
        if self._is_own(work):
            return self._answer(self._backlog.batch(work.number), result, now_s)
        return [SendBack(work, result)]

    def failed(self, work: Work, error: Exception, now_s: float) -> Sequence[Action]:
        """The core could not compute its batch. Nothing follows if the batch was given up meanwhile."""
        if self._running is not work:
            return []
        self._running = None
        return [*self._undo(work, Undone.FAILED, now_s, error), *self._match(now_s)]

    def hung(self, now_s: float) -> Sequence[Action]:
        """The core's batch hangs: give it up, and leave all else to other workers; this one must end then.

        As in a batch that fails, its texts are tried one by one, elsewhere; one that hung alone is not tried again.
        """
        if self._running is None or not self.is_accepting:
            return []
        self.phase = SchedulerPhase.RETIRED
        running, self._running = self._running, None
        return [*self._undo(running, Undone.HUNG, now_s), *self._undo_not_begun(now_s), *self._match(now_s)]

    def received(self, work: Work, now_s: float) -> Sequence[Action]:
        """Another worker sent a batch."""
        if not self.is_accepting:
            return [SendBack(work, Undone.NOT_BEGUN)]
        self._kept.append(work)
        return self._match(now_s)

    def returned(self, number: int, worker: Address, outcome: Result | Undone, now_s: float) -> Sequence[Action]:
        """Another worker has computed a batch of this one, or will not."""
        if (batch := self._backlog.find_away(number, worker)) is None:
            return []
        actions: Sequence[Action] = []
        if isinstance(outcome, Result):
            actions = self._answer(batch, outcome, now_s)
        elif outcome is Undone.FAILED and len(batch.texts) == 1 and self.may_compute():
            # It may be that worker's fault: the text is tried here before it fails.
            self._keep(batch)
        else:
            actions = self._undo(batch.work, outcome, now_s)
        return [*actions, *self._match(now_s)]

    def unsent(self, work: Work, now_s: float) -> Sequence[Action]:
        """A worker did not take a batch that was sent to it: its texts wait for another event."""
        actions = self._undo(work, Undone.NOT_BEGUN, now_s)
        self._seat.publish_waiting(self._backlog.n_waiting_tokens)
        return actions

    def look_at_board(self, now_s: float) -> Sequence[Action]:
        """This worker was woken, or time has passed: a worker may be gone, and another may accept a batch.

        The batches of a worker that is gone wait again, and what it has sent need not be computed.
        """
        is_present = self._seat.board.is_present
        for batch in self._backlog.batches_away():
            if not is_present(batch.worker):
                self._backlog.requeue(batch, now_s)
        self._kept = deque(work for work in self._kept if is_present(work.owner))
        return self._match(now_s)

    def broken(self, now_s: float) -> Sequence[Action]:
        """A backend cannot compute in this worker."""
        if self.phase is SchedulerPhase.SERVING:
            self.phase = SchedulerPhase.BROKEN
        return self._match(now_s)

    def close(self, now_s: float) -> Sequence[Action]:
        """The worker ends: refuse what waits. The batch on the core, and those that others have, may still end."""
        self.phase = SchedulerPhase.CLOSED
        return [*self._undo_not_begun(now_s), *self._refuse_waiting(now_s)]

    def refuse_rest(self, now_s: float) -> Sequence[Action]:
        """There is no time left: refuse what waits, and what other workers have."""
        for batch in self._backlog.batches_away():
            self._backlog.requeue(batch, now_s)
        return self._refuse_waiting(now_s)

    def _match(self, now_s: float) -> Sequence[Action]:
        """Match waiting texts to free cores. To be called after either changes.

        A worker publishes its numbers before it reads the others'. If two miss each other, they look again soon.
        """
        seat = self._seat
        seat.publish_waiting(self._backlog.n_waiting_tokens)
        may_compute, is_idle = self.may_compute(), self._running is None
        actions: list[Action] = []
        # An idle core gets its batch when its thread reports `idle`: texts that come until then join it.
        if self._backlog.n_waiting_tokens and not (is_idle and (self._kept or may_compute)):
            actions += self._send_waiting(now_s)
        # Where not every worker may compute, one that may takes a batch of another in advance, by turns with its own.
        is_free = is_idle and not self._backlog.n_waiting_tokens
        serves_others = len(seat.board.workers()) > self._n_computing
        accepts = may_compute and not self._kept and (is_free or serves_others)
        if seat.publish_accepts(accepts=accepts):
            actions += map(Wake, seat.waiting())
        return actions

    def _send_waiting(self, now_s: float) -> Sequence[Action]:
        """Send waiting texts to the workers that accept a batch."""
        seat = self._seat
        is_retired = self.phase is SchedulerPhase.RETIRED
        if is_retired and not seat.has_other_among(self._n_computing):
            return self._refuse_waiting(now_s)
        actions: list[Action] = []
        for worker in seat.accepting():
            while (batch := self._form_batch()) is not None and not self._can_be_sent(batch.work):
                if is_retired:
                    actions += self._backlog.end_with_error(batch, NotReadyError("this worker stops; try again"), now_s)
                else:
                    self._keep(batch)
            if batch is None:
                break
            seat.claim(worker)
            batch.hand_over(worker, BatchState.AWAY, now_s)
            actions.append(Send(batch.work, worker))
        seat.publish_waiting(self._backlog.n_waiting_tokens)
        return actions

    def _next_work(self) -> Work | None:
        # Own batches and received ones take turns, so that neither kind waits for all of the other.
        if self.may_compute() and (self._ran_for_other or not self._kept) and (batch := self._form_batch()) is not None:
            return batch.work
        return self._kept.popleft() if self._kept else None

    def _form_batch(self) -> Batch | None:
        """Form the next batch, for as many cores as are free or work for this worker already."""
        own = self._running is None and self.may_compute()
        n_away = len(self._backlog.batches_away())
        return self._backlog.form_batch(max(1, own + len(self._seat.accepting()) + n_away))

    def _keep(self, batch: Batch) -> None:
        """Let this core compute a batch, whoever else may."""
        batch.worker, batch.state = self._seat.address, BatchState.FORMED
        self._kept.append(batch.work)

    def _can_be_sent(self, work: Work) -> bool:
        return sum(len(ids) + 1 for ids in work.inputs) <= self._max_sent_ids

    def _is_own(self, work: Work) -> bool:
        return work.owner == self._seat.address

    def _answer(self, batch: Batch, result: Result, now_s: float) -> Sequence[Action]:
        self._seat.count_answered(batch.n_tokens)
        return self._backlog.answer(batch, result, now_s)

    def _undo(self, work: Work, why: Undone, now_s: float, error: Exception | None = None) -> Sequence[Action]:
        """End a batch that was not computed: tell its owner, or let its texts wait again unless they failed."""
        if not self._is_own(work):
            return [SendBack(work, why)]
        batch = self._backlog.batch(work.number)
        if why is Undone.NOT_BEGUN:
            self._backlog.requeue(batch, now_s)
            return []
        if why is Undone.HUNG:
            error = DeadlineExceededError(
                "the request was not answered: one of its texts was not computed within INFERENCE_TIMEOUT_S; leave "
                "that text out, or raise INFERENCE_TIMEOUT_S"
            )
        return self._backlog.fail(batch, error or EngineError("another worker could not compute this text"), now_s)

    def _undo_not_begun(self, now_s: float) -> list[Action]:
        kept, self._kept = self._kept, deque()
        return [action for work in kept for action in self._undo(work, Undone.NOT_BEGUN, now_s)]

    def _refuse_waiting(self, now_s: float) -> Sequence[Action]:
        error = NotReadyError("this worker stops, and no other can compute the rest of the request; try again")
        answers = self._backlog.refuse_waiting(error, now_s)
        self._seat.publish_waiting(0)
        return answers
