"""Who computes what, and when: one inference at a time in each worker, batches travelling to whichever core is free."""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from embedding_api.engine.arrays import Ids, Vectors
from embedding_api.engine.backends import Backend
from embedding_api.engine.backlog import Backlog, Batch, Job
from embedding_api.engine.cost import Cost
from embedding_api.engine.exchange import Address, Delivery, Exchange, Order, Seat
from embedding_api.errors import EngineError, NotReadyError

logger = logging.getLogger(__name__)


class _Away:
    """A batch that another worker computes, and what of its vectors has come back."""

    def __init__(self, batch: Batch, worker: Address, dim: int) -> None:
        self.batch = batch
        self.worker = worker
        self.vectors: Vectors = np.empty((len(batch.ids), dim), dtype=np.float32)
        self._n_missing = self.vectors.size

    def fill(self, start: int, components: Vectors) -> bool:
        """Puts components in their place, counted over all rows; whether they are complete now."""
        self.vectors.reshape(-1)[start : start + len(components)] = components
        self._n_missing -= len(components)
        return self._n_missing == 0


class Dispatcher:
    """This worker's inference thread, and the courier that exchanges batches with the other workers.

    A batch is formed when a core is free for it and not before, so that texts which come meanwhile join it. This
    worker's own core comes first, then any that is idle. No thread starts before `start`, so that a master can fork.

    Args:
        backends: Of each model, in the registry's order.
        costs: Of a batch, for each model.
        n_computing: How many workers compute at the same time; the others send everything to them.
    """

    def __init__(self, backends: Sequence[Backend], costs: Sequence[Cost], n_computing: int) -> None:
        self._backends = backends
        self._n_computing = n_computing
        self._backlog = Backlog(backends, costs)
        self._is_prepared = False
        self._start_error: Exception | None = None
        self._has_started = threading.Event()
        self._threads: list[threading.Thread] = []
        self._seat: Seat | None = None
        self._alone: Exchange | None = None
        self._busy_since: float | None = None
        # Guards what follows, and the backlog. The inference thread alone takes work off again.
        self._changed = threading.Condition()
        self._is_closing = False
        self._in_work: Batch | Order | None = None
        self._orders: deque[Order] = deque()
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
                if seat is None:
                    self._alone = Exchange(1)
                    seat = self._alone.take_seat()
                self._seat = seat
                self._threads = [
                    threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True, args=(seat,))
                    for target in (self._inference, self._courier)
                ]
                for thread in self._threads:
                    thread.start()
        self._has_started.wait()
        if self._start_error is not None:
            raise self._start_error

    def compute(self, model: int, ids: Sequence[Ids], n_prompt_tokens: int) -> Job:
        """Vectors of texts, once all of them are there.

        Args:
            model: Its place in the registry.
            ids: Token ids of each text, int64, (n_tokens,), n_tokens >= 1.
            n_prompt_tokens: See `Backend.embed`.

        Raises:
            NotReadyError: The process ends, and the texts were not all computed.
            Exception: What the backend raised for one of the texts.
        """
        if not self._has_started.is_set():
            self.start()
        job = Job(len(ids), self._backends[model].dim)
        with self._changed:
            if self._is_closing or self._seat is None:
                raise NotReadyError("this worker is stopping")
            self._backlog.add(job, model, ids, n_prompt_tokens)
            self._assign(self._seat)
        job.done.wait()
        if job.error is not None:
            raise job.error
        return job

    def busy_for_s(self) -> float:
        """Seconds since the batch in work began; 0 while there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """Finishes the batch in work, refuses what waits, ends the threads, gives the seat up."""
        with self._changed:
            self._is_closing = True
            self._refuse_all()
            self._changed.notify_all()
        self._has_started.set()
        if self._seat is None:
            return
        self._seat.wake_self()
        for thread in self._threads:
            thread.join()
        with self._changed:
            for away in self._away.values():
                self._backlog.give_back(away.batch)
            self._refuse_all()
        self._seat.leave()
        if self._alone is not None:
            self._alone.close()

    def _refuse_all(self) -> None:
        self._backlog.refuse(NotReadyError("this worker stopped before the request's turn came"))

    def _assign(self, seat: Seat) -> None:
        """Gives what waits to the cores that are free; to be called, with the lock, whenever one of both has changed.

        This worker's own core takes its batch itself, when its thread gets to run: what comes until then joins it.
        Others see what waits before we see who is idle, and say that they are idle before they see what waits: so one
        of both notices the other.
        """
        is_idle = self._in_work is None and self._may_compute(seat)
        if is_idle and (self._orders or self._backlog.n_waiting_tokens):
            self._changed.notify_all()
        seat.say(idle=False, waiting_tokens=self._backlog.n_waiting_tokens)
        while self._backlog.n_waiting_tokens and seat.n_idle() and (batch := self._take(seat)):
            is_last = is_idle and not self._backlog.n_waiting_tokens
            if is_last or not self._send(seat, batch):
                self._backlog.give_back(batch)
                break
        seat.say(idle=is_idle and not self._orders, waiting_tokens=self._backlog.n_waiting_tokens)

    def _may_compute(self, seat: Seat) -> bool:
        return seat.rank() < self._n_computing and not self._is_closing

    def _take(self, seat: Seat) -> Batch | None:
        """The next batch, for as many cores as are free or work for this worker already."""
        return self._backlog.take(max(1, (self._in_work is None) + seat.n_idle() + len(self._away)))

    def _send(self, seat: Seat, batch: Batch) -> bool:
        worker = seat.claim_idle()
        if worker is None:
            return False
        number = next(self._numbers)
        self._away[number] = _Away(batch, worker, self._backends[batch.model].dim)
        if seat.send_batch(worker, number, batch.model, batch.n_prompt_tokens, batch.ids):
            return True
        del self._away[number]
        return False

    def _inference(self, seat: Seat) -> None:
        """The inference thread: prepares, then computes one batch after the other."""
        try:
            if self._may_compute(seat):
                self._prepare()
        except Exception as error:  # noqa: BLE001 - whatever a backend raises, start() shall raise
            self._start_error = error
        self._has_started.set()
        while (work := self._next_work(seat)) is not None:
            self._busy_since = time.monotonic()
            try:
                self._prepare()
                vectors = self._backends[work.model].embed(work.ids, work.n_prompt_tokens)
            except Exception as error:  # noqa: BLE001 - whatever happened, the texts must be answered
                self._fail(seat, work, error)
            else:
                self._answer(seat, work, vectors)
            self._busy_since = self._in_work = None

    def _prepare(self) -> None:
        if not self._is_prepared:
            for backend in self._backends:
                backend.prepare()
            self._is_prepared = True

    def _next_work(self, seat: Seat) -> Batch | Order | None:
        """Waits for something to compute; None when there will be nothing more."""
        with self._changed:
            while not self._is_closing:
                if self._may_compute(seat):
                    self._in_work = self._orders.popleft() if self._orders else self._take(seat)
                self._assign(seat)
                if self._in_work is not None:
                    return self._in_work
                seat.offer_core()
                self._changed.wait()
            return None

    def _answer(self, seat: Seat, work: Batch | Order, vectors: Vectors) -> None:
        if isinstance(work, Order):
            seat.send_vectors(work, vectors)
            return
        with self._changed:
            self._backlog.answer(work, vectors)

    def _fail(self, seat: Seat, work: Batch | Order, error: Exception) -> None:
        logger.error("a batch of %d texts failed: %s", len(work.ids), type(error).__name__)
        logger.debug("how the batch failed", exc_info=error)
        if isinstance(work, Order):
            seat.send_failure(work)
            return
        with self._changed:
            self._backlog.fail(work, error)

    def _courier(self, seat: Seat) -> None:
        """The courier thread: takes in what other workers send."""
        while not self._is_closing:
            message = seat.receive()
            with self._changed:
                if isinstance(message, Order):
                    self._orders.append(message)
                elif isinstance(message, Delivery):
                    self._deliver(message)
                self._fetch_lost(seat)
                self._assign(seat)

    def _deliver(self, delivery: Delivery) -> None:
        away = self._away.get(delivery.number)
        if away is None or away.worker != delivery.sender:
            # Its worker was given up, and the batch is computed again; inference is pure, so this one is as good.
            return
        if delivery.components is None:
            del self._away[delivery.number]
            self._backlog.fail(away.batch, EngineError("another worker could not compute this text"))
        elif away.fill(delivery.start, delivery.components):
            del self._away[delivery.number]
            self._backlog.answer(away.batch, away.vectors)

    def _fetch_lost(self, seat: Seat) -> None:
        """Batches whose worker is gone wait again."""
        for number, away in list(self._away.items()):
            if not seat.is_taken(away.worker):
                del self._away[number]
                self._backlog.give_back(away.batch)
