"""Decides which texts are computed where. It has no thread, no socket and no clock of its own."""

from collections import deque
from collections.abc import Sequence

from embedding_api.engine.scheduling.actions import Action, Answer, Compute, Send, SendBack, Wake
from embedding_api.engine.scheduling.backlog import Backlog
from embedding_api.engine.scheduling.batch import Batch, BatchState
from embedding_api.engine.scheduling.board import NO_ROOM, Seat
from embedding_api.engine.scheduling.crew import Crew, look
from embedding_api.engine.scheduling.job import Job
from embedding_api.engine.scheduling.pack import Pack
from embedding_api.engine.scheduling.phase import SchedulerPhase
from embedding_api.engine.work import Address, Ids, Lane, Result, Undone, Work
from embedding_api.errors import DeadlineExceededError, EngineError, NotReadyError


class Scheduler:
    """As long as this worker lives, each accepted text is answered exactly once, none starves, none is counted twice.

    A batch is formed when a core is free for it, or when another worker has room for it in its next one, so that texts
    which come meanwhile join it. A core computes batches of several workers as one pack. What waits alone, while all
    cores are idle, is for the soloist. Each event has a method, which returns the actions to carry out, in order,
    before the next event; but `unsent` is reported at once, before later actions.

    Not safe for threads. Times are in seconds on one monotonic clock.

    Args:
        backlog: Empty, and owned by this worker.
        seat: This worker's place among the others.
        n_members: How many workers compute at the same time, besides the soloist.
        max_sent_ids: The most token ids of a batch that can be sent, with one number more for each text.
        solo_tokens: For each backend the fewest tokens that are worth the way to the soloist. Empty without a soloist.
    """

    def __init__(
        self, backlog: Backlog, seat: Seat, n_members: int, max_sent_ids: int, solo_tokens: Sequence[float] = ()
    ) -> None:
        self.phase = SchedulerPhase.SERVING
        self._backlog = backlog
        self._seat, self._n_members = seat, n_members
        self._max_sent_ids = max_sent_ids
        self._solo_tokens = solo_tokens
        # Batches for this core, whoever else may compute: those of others, and own ones that cannot go elsewhere.
        self._kept: deque[Work] = deque()
        self._running: Sequence[Work] = ()
        self._began_with_other = False

    def may_compute(self) -> bool:
        """Return True if this worker's core computes its own texts."""
        return self._may_compute(self._look())

    def is_soloist(self) -> bool:
        """Return True if this worker computes on all cores."""
        return self._is_solo(self._look())

    def accept(self, job: Job, lane: Lane, inputs: Sequence[Ids], now_s: float) -> Sequence[Action]:
        """A request came: its job is answered later, at the latest when this worker ends. For `inputs` see `Work`."""
        if not self.phase.accepts:
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
        crew = self._look()
        pack = self._next_pack(crew, now_s)
        if pack is None:
            return self._match(now_s)
        self._running = pack.works
        self._began_with_other = not self._is_own(pack.works[0])
        for work in filter(self._is_own, pack.works):
            self._backlog.batch(work.number).hand_over(work.owner, BatchState.RUNNING, now_s)
        return [Compute(pack.works, on_all_cores=self._is_solo(crew)), *self._match(now_s)]

    def computed(self, works: Sequence[Work], result: Result, now_s: float) -> Sequence[Action]:
        """The core has computed its pack. Nothing follows if the pack was given up meanwhile."""
        if self._running is not works:
            return []
        self._running = ()
        actions: list[Action] = []
        for work, part in zip(works, result.split([len(work.inputs) for work in works]), strict=True):
            if self._is_own(work):
                actions += self._answer(self._backlog.batch(work.number), part, now_s)
            else:
                actions.append(SendBack(work, part))
        return actions

    def failed(self, works: Sequence[Work], error: Exception, now_s: float) -> Sequence[Action]:
        """The core could not compute its pack. Nothing follows if the pack was given up meanwhile."""
        if self._running is not works:
            return []
        return [*self._undo_running(Undone.FAILED, now_s, error), *self._match(now_s)]

    def hung(self, now_s: float) -> Sequence[Action]:
        """The core's pack hangs: give it up, and leave all else to other workers; this one must end then.

        As in a pack that fails, its texts are tried one by one, elsewhere; one that hung alone is not tried again.
        """
        if not self._running or not self.phase.accepts:
            return []
        self.phase = SchedulerPhase.RETIRED
        return [*self._undo_running(Undone.HUNG, now_s), *self._undo_not_begun(now_s), *self._match(now_s)]

    def received(self, work: Work, now_s: float) -> Sequence[Action]:
        """Another worker sent a batch."""
        if not self.phase.accepts:
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
        """This worker was woken, or time has passed: a worker may be gone, and another may have room for a batch.

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
        """The worker ends: refuse what waits. The pack on the core, and the batches that others have, may still end."""
        self.phase = SchedulerPhase.CLOSED
        self._seat.publish_room(NO_ROOM, is_idle=False)
        return [*self._undo_not_begun(now_s), *self._refuse_waiting(now_s)]

    def refuse_rest(self, now_s: float) -> Sequence[Action]:
        """There is no time left: refuse what waits, and what other workers have."""
        for batch in self._backlog.batches_away():
            self._backlog.requeue(batch, now_s)
        return self._refuse_waiting(now_s)

    def _look(self) -> Crew:
        return look(self._seat.board, self._seat.address, self._n_members, has_soloist=bool(self._solo_tokens))

    def _may_compute(self, crew: Crew) -> bool:
        return self.phase is SchedulerPhase.SERVING and (crew.is_member or self._is_solo(crew))

    def _is_solo(self, crew: Crew) -> bool:
        return crew.soloist == self._seat.address

    def _match(self, now_s: float) -> Sequence[Action]:
        """Match waiting texts to free cores. To be called after either changes.

        A worker publishes its numbers before it reads the others'. If two miss each other, they look again soon.
        """
        seat, backlog = self._seat, self._backlog
        seat.publish_waiting(backlog.n_waiting_tokens)
        crew = self._look()
        actions: list[Action] = []
        # An idle core gets its pack when its thread reports `idle`: texts that come until then join it.
        if backlog.n_waiting_tokens and (self._running or not (self._kept or self._computes_next(crew))):
            actions += self._send_waiting(crew, now_s)
        may_compute = self._may_compute(crew)
        n_queued = backlog.n_waiting_tokens + sum(work.n_tokens for work in self._kept)
        n_room = backlog.target_tokens - n_queued if may_compute and crew.is_member else NO_ROOM
        if seat.publish_room(n_room, is_idle=may_compute and not self._running and not n_queued):
            actions += map(Wake, seat.waiting())
        return actions

    def _computes_next(self, crew: Crew) -> bool:
        """Return True if this worker's core is for the texts that wait here."""
        if not self._may_compute(crew):
            return False
        goes_to_soloist = self._is_for_soloist(crew)
        return goes_to_soloist == self._is_solo(crew)

    def _is_for_soloist(self, crew: Crew) -> bool:
        """Return True if what waits here is all there is to do, and the soloist computes it sooner than this worker."""
        backlog = self._backlog
        if crew.soloist is None or not crew.is_idle or self._running or self._kept or backlog.batches_away():
            return False
        if (lane := backlog.lone_lane) is None:
            return False
        # Only a member has a core of its own, which needs no way.
        return not crew.is_member or backlog.n_waiting_tokens >= self._solo_tokens[lane.backend]

    def _send_waiting(self, crew: Crew, now_s: float) -> Sequence[Action]:
        """Send waiting texts to the workers that have room for them."""
        seat, backlog = self._seat, self._backlog
        is_retired = self.phase is SchedulerPhase.RETIRED
        if is_retired and not crew.has_other:
            return self._refuse_waiting(now_s)
        actions: list[Action] = []
        for worker, share_tokens in self._shares(crew):
            while (batch := backlog.form_batch(share_tokens)) and batch.work.n_sent_ids > self._max_sent_ids:
                if is_retired:
                    actions += backlog.end_with_error(batch, NotReadyError("this worker stops; try again"), now_s)
                else:
                    self._keep(batch)
            if batch is None:
                break
            seat.claim(worker, batch.n_tokens)
            batch.hand_over(worker, BatchState.AWAY, now_s)
            actions.append(Send(batch.work, worker))
        seat.publish_waiting(backlog.n_waiting_tokens)
        return actions

    def _shares(self, crew: Crew) -> Sequence[tuple[Address, float]]:
        """Return the workers that get a batch now, and the tokens of each."""
        if crew.soloist is not None and self._is_for_soloist(crew):
            return [(crew.soloist, float("inf"))]
        backlog = self._backlog
        # A busy core is better than a way for a few tokens, if it is this worker's own.
        least = backlog.least_tokens if self._may_compute(crew) and crew.is_member else 0.0
        served = {batch.worker for batch in backlog.batches_away()}
        return crew.shares(backlog.n_waiting_tokens, backlog.target_tokens, least, served)

    def _next_pack(self, crew: Crew, now_s: float) -> Pack | None:
        """Return what this worker's core computes next; None if there is nothing for it."""
        backlog, pack = self._backlog, None
        computes = self._computes_next(crew)
        # Own batches and received ones take turns, so that neither kind waits for all of the other.
        if computes and (self._began_with_other or not self._kept) and (batch := self._form_batch(crew)) is not None:
            pack = backlog.pack(batch.work)
        elif self._kept:
            pack = backlog.pack(self._kept.popleft())
        else:
            return None
        self._kept = deque(work for work in self._kept if not pack.take(work))
        if computes:
            backlog.fill(pack, now_s)
        return pack

    def _form_batch(self, crew: Crew) -> Batch | None:
        """Form the next own batch, for this core and as many others as are idle or work for this worker already."""
        n_cores = 1 if self._is_solo(crew) else 1 + crew.n_idle + len(self._backlog.batches_away())
        return self._backlog.form_batch(self._backlog.n_waiting_tokens / n_cores)

    def _keep(self, batch: Batch) -> None:
        """Let this core compute a batch, whoever else may."""
        batch.worker, batch.state = self._seat.address, BatchState.FORMED
        self._kept.append(batch.work)

    def _is_own(self, work: Work) -> bool:
        return work.owner == self._seat.address

    def _answer(self, batch: Batch, result: Result, now_s: float) -> Sequence[Action]:
        self._seat.count_answered(batch.n_tokens)
        return self._backlog.answer(batch, result, now_s)

    def _undo_running(self, why: Undone, now_s: float, error: Exception | None = None) -> Sequence[Action]:
        works, self._running = self._running, ()
        if len(works) > 1:
            why = Undone.IN_COMPANY
        return [action for work in works for action in self._undo(work, why, now_s, error)]

    def _undo(self, work: Work, why: Undone, now_s: float, error: Exception | None = None) -> Sequence[Action]:
        """End a batch that was not computed: tell its owner, or let its texts wait again unless they failed."""
        if not self._is_own(work):
            return [SendBack(work, why)]
        batch = self._backlog.batch(work.number)
        if why is Undone.NOT_BEGUN:
            self._backlog.requeue(batch, now_s)
            return []
        if why is Undone.IN_COMPANY:
            self._backlog.separate(batch, now_s)
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
