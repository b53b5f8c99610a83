"""Who computes what, and when: one inference at a time in each worker, batches travelling to whichever core is free."""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from embedding_api.engine.backends import Backend
from embedding_api.engine.scheduling.admission import UNLIMITED, Admission, Limits
from embedding_api.engine.scheduling.backlog import Backlog, Batch, Job
from embedding_api.engine.scheduling.cost import Cost
from embedding_api.engine.scheduling.timing import Timing
from embedding_api.engine.work import Ids, Vectors
from embedding_api.engine.workers.exchange import Address, Delivery, Exchange, News, Order, Seat, Undone
from embedding_api.errors import ClientGoneError, DeadlineExceededError, EngineError, NotReadyError
from embedding_api.request import Caller
from embedding_api.telemetry import log, metrics

logger = logging.getLogger(__name__)

# How long a process that ends waits for the batch in work: several times what the largest models take for one.
_LAST_BATCH_S = 20


class _Away:
    """A batch that another worker computes, since when, and what of its vectors has come back."""

    def __init__(self, batch: Batch, worker: Address, dim: int) -> None:
        self.batch = batch
        self.worker = worker
        self.sent_s = time.monotonic()
        self.vectors: Vectors = np.empty((len(batch.ids), dim), dtype=np.float32)
        self._n_missing = self.vectors.size

    def fill(self, start: int, components: Vectors) -> bool:
        """Puts components in their place, counted over all rows; whether they are complete now."""
        self.vectors.reshape(-1)[start : start + len(components)] = components  # of equal shape, or ValueError
        self._n_missing -= len(components)
        return self._n_missing == 0


class Dispatcher:
    """This worker's inference thread, and the courier that exchanges batches with the other workers.

    A batch is formed when a core is free for it and not before, so that texts which come meanwhile join it. This
    worker's own core comes first, then any that accepts a batch. No thread starts before `start`, so that a master can
    fork.

    Args:
        names: Of the model of each backend, in the registry's order.
        backends: In the same order.
        costs: Of a batch, for each of them.
        n_computing: How many workers compute at the same time; the others send everything to them.
        limits: What all workers take.

    Attributes:
        admission: Whether they take more; None before the start.
    """

    def __init__(
        self,
        names: Sequence[str],
        backends: Sequence[Backend],
        costs: Sequence[Cost],
        n_computing: int,
        limits: Limits = UNLIMITED,
    ) -> None:
        self.admission: Admission | None = None
        self._names = names
        self._backends = backends
        self._n_computing = n_computing
        self._limits = limits
        self._backlog = Backlog(backends, costs)
        self._is_prepared = False
        self._start_error: Exception | None = None
        self._has_started = threading.Event()
        self._threads: list[threading.Thread] = []
        self._seat: Seat | None = None
        self._alone: Exchange | None = None
        self._busy_since: float | None = None
        # Guards what follows, and the backlog.
        self._changed = threading.Condition()
        self._is_closing = False
        self._is_retired = False
        self._in_work: Batch | Order | None = None
        self._was_order = False
        # What this core must compute, whoever else may: what others sent, and what cannot travel.
        self._due: deque[Batch | Order] = deque()
        self._away: dict[int, _Away] = {}
        self._numbers = itertools.count()

    def start(self, seat: Seat | None = None) -> None:
        """Starts the threads, and waits until the backends are prepared.

        Args:
            seat: This worker's place on the exchange; None if there are no others.

        Raises:
            Exception: What a backend's `prepare` raises.
        """
        with self._changed:
            if not self._threads and not self._is_closing:
                seat = seat or self._sit_alone()
                self._seat = seat
                self.admission = Admission(seat.exchange, self._limits)
                self._threads = [
                    threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True, args=(seat,))
                    for target in (self._inference, self._courier)
                ]
                for thread in self._threads:
                    thread.start()
        self._has_started.wait()
        if self._start_error is not None:
            raise self._start_error

    def _sit_alone(self) -> Seat:
        self._alone = Exchange(1)
        if (seat := self._alone.take_seat()) is None:
            raise RuntimeError("a new exchange has no free seat; this is a bug")
        return seat

    def compute(
        self, place: int, ids: Sequence[Ids], n_prompt_tokens: int, caller: Caller, timing: Timing | None = None
    ) -> Job:
        """Vectors of texts, once all of them are there.

        Args:
            place: Of its backend in the registry.
            ids: Token ids of each text, int64, (n_tokens,), n_tokens >= 1.
            n_prompt_tokens: See `Backend.embed`.
            caller: Who waits for them.
            timing: Told when a core has the texts, and when they are answered.

        Raises:
            OverloadedError: As many texts as may be wait already.
            DeadlineExceededError: The caller's deadline passed, or one of the texts hung.
            ClientGoneError: The caller left.
            NotReadyError: The process ends, and the texts were not all computed.
            Exception: What the backend raised for one of the texts.
        """
        if not self._has_started.is_set():
            self.start()
        job = Job(len(ids), self._backends[place].dim, timing)
        with self._changed:
            if self._is_closing or self._is_retired or self._seat is None or self.admission is None:
                raise NotReadyError("this worker is stopping")
            if caller.remaining_s() == 0:
                raise DeadlineExceededError(caller.deadline_message())
            self.admission.require_room()
            n_duplicates = self._backlog.add(job, place, ids, n_prompt_tokens)
            self._assign(self._seat)
        metrics.DUPLICATES.labels(self._names[place]).inc(n_duplicates)
        gone = ClientGoneError("the client closed the connection")
        caller.when_left(log.for_request(lambda: self._abandon(job, gone, "client_gone")))
        if not job.done.wait(caller.remaining_s()):
            error = DeadlineExceededError(caller.deadline_message())
            self._abandon(job, error, "deadline")
        if job.error is not None:
            raise job.error
        return job

    def _abandon(self, job: Job, error: Exception, reason: str) -> None:
        with self._changed:
            if job.done.is_set() or self._seat is None:
                return
            n_left = self._backlog.abandon(job, error)
            self._say_waiting(self._seat)
        metrics.DROPPED.labels(reason).inc(n_left)
        logger.info("%d waiting texts dropped: %s", n_left, error)

    def _say_waiting(self, seat: Seat) -> None:
        seat.say_waiting(self._backlog.n_waiting_tokens)
        metrics.QUEUE_TEXTS.set(self._backlog.n_waiting_texts)
        metrics.QUEUE_TOKENS.set(self._backlog.n_waiting_tokens)

    def say_arriving(self, n_tokens: int, n_bytes: int) -> None:
        """See `Seat.say_arriving`."""
        if self._seat is not None:
            self._seat.say_arriving(n_tokens, n_bytes)

    def stuck_for_s(self) -> float:
        """Seconds since the batch in work here began; 0 while there is none."""
        return 0.0 if (busy_since := self._busy_since) is None else time.monotonic() - busy_since

    def retire(self, timeout_s: float) -> bool:
        """Gives up the batch in work if it hangs, and leaves all else to other workers; this one must end then.

        As in a batch that fails, its texts are tried one by one, elsewhere; one that hung alone is not tried again.

        Args:
            timeout_s: How long a batch may take.

        Returns:
            Whether it does hang.
        """
        with self._changed:
            if self._seat is None or self._is_retired or self.stuck_for_s() <= timeout_s:
                return False
            self._is_retired = True
            if isinstance(self._in_work, Order):
                self._seat.send_back(self._in_work, Undone.HUNG)
            elif self._in_work is not None:
                self._backlog.fail(self._in_work, _hung())
            due, self._due = self._due, deque()
            for work in due:
                if isinstance(work, Order):
                    self._seat.send_back(work, Undone.NOT_BEGUN)
                else:
                    self._backlog.give_back(work)
            self._assign(self._seat)
            return True

    def busy_for_s(self) -> float:
        """Seconds since the oldest batch began, here or at another worker; 0 while there is none."""
        with self._changed:
            begun = [away.sent_s for away in self._away.values()]
        return max([self.stuck_for_s(), *(time.monotonic() - begun_s for begun_s in begun)])

    def problem(self) -> str | None:
        """Why nothing can be computed here any more; None if all is well, or nothing has started yet."""
        if self._start_error is not None:
            return f"a backend cannot compute here: {type(self._start_error).__name__}"
        if self._is_retired:
            return "a batch hung, and this worker is about to be replaced"
        if not self._is_closing and any(not thread.is_alive() for thread in self._threads):
            return "a thread of the engine has ended"
        return None

    def close(self) -> None:
        """Finishes the batch in work, refuses what waits, ends the threads, gives the seat up."""
        with self._changed:
            self._is_closing = True
            for work in self._due:
                if isinstance(work, Batch):
                    self._backlog.give_back(work)
            self._refuse_all()
            self._changed.notify_all()
        self._has_started.set()
        if self._seat is None:
            return
        self._seat.wake_self()
        for thread in self._threads:
            # One that hangs in a backend ends with the process.
            thread.join(_LAST_BATCH_S)
        self.refuse_rest()
        self._seat.leave()
        if self._alone is not None:
            self._alone.close()

    def refuse_rest(self) -> None:
        """Refuses what no core of this process has, for want of time."""
        with self._changed:
            for away in self._away.values():
                self._backlog.give_back(away.batch)
            self._away.clear()
            self._refuse_all()

    def _refuse_all(self) -> None:
        self._backlog.refuse(NotReadyError("this worker stopped before the request's turn came"))

    def _assign(self, seat: Seat) -> None:
        """Sees to what waits and what is free; to be called, with the lock, whenever one of both has changed.

        An idle core takes its batch itself, when its thread gets to run: what comes until then joins it.
        """
        self._say_waiting(seat)
        may_compute = self._may_compute(seat)
        is_idle = self._in_work is None
        if is_idle and (self._due or (may_compute and self._backlog.n_waiting_tokens)):
            self._changed.notify_all()
        else:
            self._send_what_waits(seat)
        # Where not every worker may compute, one that may takes a batch of another's in advance, in turn with its own.
        is_free = is_idle and not self._backlog.n_waiting_tokens
        has_others_to_serve = seat.n_workers() > self._n_computing
        seat.say_accepts(accepts=may_compute and not self._due and (is_free or has_others_to_serve))

    def _may_compute(self, seat: Seat) -> bool:
        ends = self._is_closing or self._is_retired
        return seat.rank() < self._n_computing and not ends and self._start_error is None

    def _send_what_waits(self, seat: Seat) -> None:
        if self._is_retired and min(self._n_computing, seat.n_workers()) == 1:
            self._backlog.refuse(NotReadyError("this worker is being replaced, and there is no other; try again"))
        while self._backlog.n_waiting_tokens and seat.n_accepting() and (batch := self._take(seat)):
            if not seat.can_travel(batch.ids):
                if self._is_retired:
                    self._backlog.give_up(batch, NotReadyError("this worker is being replaced; try again"))
                    continue
                self._due.append(batch)
                self._changed.notify_all()
                continue
            number = next(self._numbers)
            worker = seat.send_batch(number, batch.place, batch.n_prompt_tokens, batch.ids)
            if worker is None:
                self._backlog.give_back(batch)
                break
            batch.begin(worker.seat)
            self._away[number] = _Away(batch, worker, self._backends[batch.place].dim)
        self._say_waiting(seat)

    def _take(self, seat: Seat) -> Batch | None:
        """The next batch, for as many cores as are free or work for this worker already."""
        own = self._in_work is None and self._may_compute(seat)
        return self._backlog.take(max(1, own + seat.n_accepting() + len(self._away)))

    def _inference(self, seat: Seat) -> None:
        """The inference thread: prepares, then computes one batch after the other."""
        if self._may_compute(seat):
            self._try_to_prepare()
        self._has_started.set()
        while (work := self._next_work(seat)) is not None:
            try:
                vectors = self._compute(work)
            except Exception as error:  # noqa: BLE001 - whatever happened, the texts must be answered
                self._fail(seat, work, error)
            else:
                self._answer(seat, work, vectors)

    def _try_to_prepare(self) -> None:
        try:
            for backend in self._backends:
                backend.prepare()
            self._is_prepared = True
        except Exception as error:  # noqa: BLE001 - whatever a backend raises: start() raises it, or problem() tells
            self._start_error = error

    def _compute(self, work: Batch | Order) -> Vectors:
        if not self._is_prepared and self._start_error is None:
            self._try_to_prepare()
        if self._start_error is not None:
            raise self._start_error
        backend = self._backends[work.place]
        began_s = self._busy_since = time.monotonic()
        with metrics.BATCHES_IN_PROGRESS.track_inprogress():
            vectors = backend.embed(work.ids, work.n_prompt_tokens)
        self._count(work, time.monotonic() - began_s)
        if vectors.shape != (len(work.ids), backend.dim) or vectors.dtype != np.float32:
            raise RuntimeError(f"the backend gave {vectors.dtype} {vectors.shape}; this is a bug")
        return vectors

    def _count(self, work: Batch | Order, taken_s: float) -> None:
        name, lengths = self._names[work.place], [len(ids) for ids in work.ids]
        n_tokens = sum(lengths)
        n_computed = self._backends[work.place].n_computed(len(lengths), max(lengths), n_tokens)
        metrics.BATCH_TEXTS.labels(name).observe(len(lengths))
        metrics.BATCH_SECONDS.labels(name).observe(taken_s)
        metrics.COMPUTED_TOKENS.labels(name).inc(n_computed)
        metrics.PADDING_TOKENS.labels(name).inc(n_computed - n_tokens)

    def _next_work(self, seat: Seat) -> Batch | Order | None:
        """Waits for something to compute; None when there will be nothing more."""
        with self._changed:
            was_due = self._was_order
            while not self._is_closing:
                # In turn, so that neither this worker's texts nor those of others wait for all of the other's.
                if self._may_compute(seat) and (was_due or not self._due):
                    self._in_work = self._take(seat)
                if self._in_work is None and self._due:
                    self._in_work = self._due.popleft()
                self._assign(seat)
                if self._in_work is not None:
                    self._was_order = isinstance(self._in_work, Order)
                    if isinstance(self._in_work, Batch):
                        self._in_work.begin(seat.address.seat)
                    return self._in_work
                self._changed.wait()
            return None

    def _end_work(self) -> bool:
        """Whether the batch in work is this thread's to end, which then has ended; not if it was given up meanwhile."""
        self._in_work = self._busy_since = None
        return not self._is_retired

    def _answer(self, seat: Seat, work: Batch | Order, vectors: Vectors) -> None:
        with self._changed:
            if not self._end_work():
                return
            if isinstance(work, Batch):
                self._backlog.answer(work, vectors)
                seat.say_answered(work.n_tokens)
        if isinstance(work, Order):
            seat.send_vectors(work, vectors)

    def _fail(self, seat: Seat, work: Batch | Order, error: Exception) -> None:
        # A request fails only if a text of it fails alone, and logs that itself.
        logger.warning("a batch of %d texts failed: %s", len(work.ids), type(error).__name__)
        logger.debug("how the batch failed", exc_info=error)
        metrics.BATCH_FAILURES.labels(self._names[work.place]).inc()
        with self._changed:
            if not self._end_work():
                return
            if isinstance(work, Batch):
                self._backlog.fail(work, error)
        if isinstance(work, Order):
            seat.send_back(work, Undone.FAILED)

    def _courier(self, seat: Seat) -> None:
        """The courier thread: takes in what other workers send."""
        while not self._is_closing:
            message = seat.receive()
            with self._changed:
                try:
                    if isinstance(message, Order):
                        self._take_in(seat, message)
                    elif isinstance(message, Delivery):
                        self._deliver(seat, message)
                    elif isinstance(message, News):
                        self._take_back(seat, message)
                    self._fetch_lost(seat)
                    self._assign(seat)
                except Exception:
                    # Nobody else would read what the others send.
                    logger.exception("the courier could not handle a %s; this is a bug", type(message).__name__)

    def _take_in(self, seat: Seat, order: Order) -> None:
        if self._is_retired:
            seat.send_back(order, Undone.NOT_BEGUN)
        else:
            self._due.append(order)

    def _away_of(self, message: Delivery | News) -> _Away | None:
        """The batch that a message is about; None if its worker was given up, and the batch is computed again.

        Inference is pure, so that the other answer is as good.
        """
        away = self._away.get(message.number)
        return away if away is not None and away.worker == message.sender else None

    def _deliver(self, seat: Seat, delivery: Delivery) -> None:
        if (away := self._away_of(delivery)) is None:
            return
        if away.fill(delivery.start, delivery.components):
            del self._away[delivery.number]
            self._backlog.answer(away.batch, away.vectors)
            seat.say_answered(away.batch.n_tokens)

    def _take_back(self, seat: Seat, news: News) -> None:
        if (away := self._away_of(news)) is None:
            return
        del self._away[news.number]
        if news.why is Undone.FAILED:
            self._retry(seat, away.batch)
        elif news.why is Undone.HUNG:
            self._backlog.fail(away.batch, _hung())
        else:
            self._backlog.give_back(away.batch)

    def _retry(self, seat: Seat, batch: Batch) -> None:
        """A batch failed at another worker, whose fault it may be: a single text is tried here before it fails."""
        if len(batch.ids) == 1 and self._may_compute(seat):
            self._due.append(batch)
        else:
            self._backlog.fail(batch, EngineError("another worker could not compute this text"))

    def _fetch_lost(self, seat: Seat) -> None:
        """Batches whose worker is gone wait again, and what a worker that is gone has sent need not be computed."""
        for number, away in list(self._away.items()):
            if not seat.is_taken(away.worker):
                del self._away[number]
                self._backlog.give_back(away.batch)
        self._due = deque(work for work in self._due if isinstance(work, Batch) or seat.is_taken(work.sender))


def _hung() -> DeadlineExceededError:
    return DeadlineExceededError(
        "the request was not answered: a text of it was not computed to an end within INFERENCE_TIMEOUT_S; leave that "
        "text out, or raise INFERENCE_TIMEOUT_S"
    )
