"""Two threads of a worker: they report events to the scheduler, and carry out its actions."""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from embedding_api.engine.scheduling.actions import Action, Answer, Compute, Send, SendBack, Wake
from embedding_api.engine.scheduling.admission import Admission
from embedding_api.engine.scheduling.backlog import Backlog
from embedding_api.engine.scheduling.board import NO_MORE, Seat
from embedding_api.engine.scheduling.job import Job
from embedding_api.engine.scheduling.phase import SchedulerPhase
from embedding_api.engine.scheduling.scheduler import Scheduler
from embedding_api.engine.scheduling.timing import Timing
from embedding_api.engine.work import Ids, Lane, Result, Work
from embedding_api.engine.workers.exchange import Exchange
from embedding_api.engine.workers.inference import Inference
from embedding_api.engine.workers.mailbox import Mailbox, Returned
from embedding_api.engine.workers.setup import Setup
from embedding_api.errors import ClientGoneError, ScarcityError
from embedding_api.request import Caller, Event
from embedding_api.telemetry import log, metrics

logger = logging.getLogger(__name__)

# Seconds for which a process that ends waits for its batch: several times what a batch of the largest models takes.
_LAST_BATCH_S = 20

# Seconds until a worker looks at the board again, since it can miss a message; see docs/decisions/0012.
_LOOK_AGAIN_S, _LOOK_AGAIN_IDLE_S = 0.1, 1.0

# The soloist has no core of its own for what several clients send: one of its connections counts as so many.
_SOLO_WEIGHT = 8


class Runner:
    """One worker: its inference thread, and the thread that reads its mailbox.

    Args:
        setup: The setup that all workers share.
        seat: This worker's; None if it computes alone.

    Attributes:
        admission: Says if the workers accept more.
        inference_timeout_s: Seconds after which a batch counts as stuck.
        seat: See above.
    """

    def __init__(self, setup: Setup, seat: Seat | None) -> None:
        self._own_exchange = Exchange(1) if seat is None or setup.exchange is None else None
        exchange = self._own_exchange or setup.exchange
        seat = seat if self._own_exchange is None else self._own_exchange.board.take_seat()
        if seat is None or exchange is None:
            raise RuntimeError("a new exchange has no free seat; this is a bug")
        self.seat = seat
        self.admission = Admission(seat.board, setup.limits, time.monotonic)
        self._exchange = exchange
        self.inference_timeout_s = setup.inference_timeout_s
        self._names = setup.names
        self._inference, self._mailbox = Inference(setup), Mailbox(exchange, seat)
        # Guards what follows. Any thread may read the scheduler's phase without it.
        self._changed = threading.Condition()
        self._backlog = Backlog(seat.address, setup.backends, setup.costs, str(os.getpid()))
        self._scheduler = Scheduler(
            self._backlog, seat, setup.n_computing, self._mailbox.max_sent_ids, setup.solo_tokens
        )
        self._next: Compute | None = None
        self._done: dict[Job, Event] = {}
        self._has_started = threading.Event()
        self._inference_thread = self._new_inference_thread()
        self._mailbox_thread = threading.Thread(target=self._read_mailbox, name="mailbox", daemon=True)

    def start(self) -> None:
        """Start the threads, and wait until the backends are prepared.

        Raises:
            ScarcityError: A thread cannot be started.
            Exception: What a backend's `prepare` raises.
        """
        try:
            self._inference_thread.start()
            self._mailbox_thread.start()
        except RuntimeError as error:
            raise ScarcityError("a thread for inference") from error
        self._has_started.wait()
        if self._inference.error is not None:
            raise self._inference.error

    def compute(self, lane: Lane, inputs: Sequence[Ids], caller: Caller, timing: Timing | None = None) -> Result:
        """Return the result of a request's texts, once all are computed.

        Args:
            lane: What computes them.
            inputs: Token ids of each text, int64, (n_tokens,), n_tokens >= 1.
            caller: The client that waits.
            timing: Filled meanwhile.

        Raises:
            OverloadedError: MAX_QUEUED_TOKENS or more tokens wait.
            DeadlineExceededError: The caller's deadline passed, or a text hung.
            ClientGoneError: The client left.
            NotReadyError: The worker ends, and not all texts were computed.
            Exception: What the backend raised for one of the texts.
        """
        job, done = Job(timing), caller.new_event()
        with self._changed:
            if self._scheduler.phase.accepts:
                caller.require_time()
                self.admission.require_room()
            self._done[job] = done
            self._report(self._scheduler.accept, job, lane, inputs)
        metrics.DUPLICATES.labels(self._names[lane.backend]).inc(job.n_duplicates)
        gone = ClientGoneError("the client closed the connection")
        caller.when_left(log.for_request(lambda: self._abandon(job, gone, "client_gone")))
        if not done.wait(caller.remaining_s()):
            self._abandon(job, caller.deadline_error(), "deadline")
        if job.error is not None:
            raise job.error
        return job.result()

    def publish_connections(self, n_connections: int | None) -> None:
        """Tell the other workers how many connections this one has; None if it takes no new one."""
        if n_connections is None:
            weighted = NO_MORE
        elif self._scheduler.is_soloist():
            weighted = 2 * _SOLO_WEIGHT * n_connections
        else:
            # The soloist takes the first one.
            weighted = 2 * n_connections + 1
        self.seat.publish_connections(weighted)

    def retire_if_stuck(self) -> bool:
        """Return True if the batch that this worker computes takes longer than it may: the process must end soon.

        That batch is given up, and all else is left to other workers.
        """
        with self._changed:
            if self._inference.stuck_for_s() <= self.inference_timeout_s or not self._scheduler.phase.accepts:
                return False
            self._report(self._scheduler.hung)
            return True

    def problem(self) -> str | None:
        """Return what keeps this worker from answering; None if nothing does."""
        if self._inference.error is not None:
            return f"a backend cannot compute here: {type(self._inference.error).__name__}"
        phase = self._scheduler.phase
        if phase is SchedulerPhase.RETIRED:
            return "a batch hung, and this worker is about to be replaced"
        if phase is not SchedulerPhase.CLOSED and not all(thread.is_alive() for thread in self._threads):
            return "a thread of the engine has ended"
        with self._changed:
            away_s = self._backlog.longest_away_s(time.monotonic())
        busy_s = max(away_s, self._inference.stuck_for_s())
        # A health check every few seconds sees it before the worker is replaced.
        return f"a batch has taken {busy_s:.0f} s so far" if busy_s > self.inference_timeout_s / 2 else None

    def close(self) -> None:
        """Finish the batch on the core, refuse what waits, end the threads, and leave the seat."""
        self._report(self._scheduler.close)
        self._mailbox.wake(self.seat.address)
        end_s = time.monotonic() + _LAST_BATCH_S
        # One that hangs in a backend ends with the process. Another may follow one that ends.
        while (alive := [one for one in self._threads if one.is_alive()]) and (left_s := end_s - time.monotonic()) > 0:
            alive[0].join(left_s)
        self.refuse_rest()
        self._exchange.leave(self.seat)
        if self._own_exchange is not None:
            self._own_exchange.close()

    def refuse_rest(self) -> None:
        """Refuse the texts that this process's core does not compute, since there is no time left."""
        self._report(self._scheduler.refuse_rest)

    def _abandon(self, job: Job, error: Exception, reason: str) -> None:
        with self._changed:
            if job.is_done:
                return
            self._report(self._scheduler.abandon, job, error)
        metrics.DROPPED.labels(reason).inc(job.n_dropped)
        logger.info("%d waiting texts dropped: %s", job.n_dropped, error)

    def _report(self, event: Callable[..., Sequence[Action]], *arguments: Any) -> None:
        """Tell the scheduler of an event, and carry out what it decides."""
        with self._changed:
            for action in event(*arguments, time.monotonic()):
                self._carry_out(action)
            # The thread of the core, if that is idle.
            self._changed.notify_all()
            metrics.QUEUE_TEXTS.set(self._backlog.n_waiting_texts)
            metrics.QUEUE_TOKENS.set(self._backlog.n_waiting_tokens)

    def _carry_out(self, action: Action) -> None:
        """Do what an action says. A batch that cannot be sent is reported at once, before later actions."""
        match action:
            case Compute():
                self._next = action
            case Answer(job):
                self._done.pop(job).set()
            case Send(work, to):
                if not self._mailbox.send(work, to):
                    self._report(self._scheduler.unsent, work)
            case SendBack(work, outcome):
                self._mailbox.send_back(work, outcome)
            case Wake(worker):
                self._mailbox.wake(worker)

    @property
    def _threads(self) -> Sequence[threading.Thread]:
        return self._inference_thread, self._mailbox_thread

    def _new_inference_thread(self) -> threading.Thread:
        return threading.Thread(target=self._run_inference, name="inference", daemon=True)

    def _run_inference(self) -> None:
        """Prepare, then compute one batch after the other, until it is the turn of a new thread."""
        if self._scheduler.may_compute():
            self._inference.prepare(on_all_cores=self._scheduler.is_soloist())
        self._has_started.set()
        n_batches = 0
        while (next_ := self._wait_for_work()) is not None:
            works = next_.works
            try:
                result = self._inference.compute(works, on_all_cores=next_.on_all_cores)
            except Exception as error:
                # A request fails only if one of its texts fails alone, and logs that itself.
                n_texts = sum(len(work.inputs) for work in works)
                logger.warning("a batch of %d texts failed: %s", n_texts, type(error).__name__)
                logger.debug("the batch failed", exc_info=error)
                self._report(self._scheduler.failed, works, error)
            else:
                self._report(self._scheduler.computed, works, result)
            n_batches += 1
            if n_batches >= self._inference.max_batches_per_thread and self._hand_over():
                return

    def _hand_over(self) -> bool:
        """Let a new thread go on in place of this one. Return False if the system refuses one."""
        thread = self._new_inference_thread()
        try:
            thread.start()
        except RuntimeError:
            return False
        self._inference_thread = thread
        return True

    def _wait_for_work(self) -> Compute | None:
        """Return what the core computes next; None when there will be nothing."""
        with self._changed:
            while self._scheduler.phase is not SchedulerPhase.CLOSED:
                if self._inference.error is not None:
                    self._report(self._scheduler.broken)
                self._report(self._scheduler.idle)
                next_, self._next = self._next, None
                if next_ is not None:
                    return next_
                self._changed.wait()
            return None

    def _read_mailbox(self) -> None:
        """Report the messages of other workers, and look at the board from time to time."""
        while self._scheduler.phase is not SchedulerPhase.CLOSED:
            message = self._mailbox.receive(_LOOK_AGAIN_IDLE_S if self._backlog.is_empty else _LOOK_AGAIN_S)
            try:
                match message:
                    case Work():
                        self._report(self._scheduler.received, message)
                    case Returned(worker, number, outcome):
                        self._report(self._scheduler.returned, number, worker, outcome)
                    # It was woken, or time has passed: a worker may have died.
                    case None:
                        self._report(self._scheduler.look_at_board)
            except Exception:
                # No other thread reads what the other workers send.
                logger.exception("a %s could not be handled; this is a bug", type(message).__name__)
