"""A server's workers without threads and sockets: real schedulers on a real board, and messages that wait in lists.

The simulation checks the promises of the schedulers for any order of events. It has its own record of the texts that
clients want, and of the place of each batch.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np

from embedding_api.engine.scheduling.actions import Answer, Compute, Send, SendBack, Wake
from embedding_api.engine.scheduling.backlog import Backlog
from embedding_api.engine.scheduling.board import BYTES_PER_SEAT, Board
from embedding_api.engine.scheduling.cost import Cost
from embedding_api.engine.scheduling.job import Job
from embedding_api.engine.scheduling.phase import SchedulerPhase
from embedding_api.engine.scheduling.scheduler import Scheduler
from embedding_api.engine.work import Address, Lane, Result, Undone, Work

N_SEATS = 4
# Size of an inbox. A worker that reads nothing receives no more messages.
MAX_MESSAGES = 3
MAX_SENT_IDS = 200


class Rows:
    """A padded layout."""

    target_batch_tokens = 64

    def n_computed(self, n_texts, longest, n_tokens):
        return n_texts * longest


def ids(text: int) -> np.ndarray:
    """Return the token ids of the text with this number, 1 to 12 of them."""
    return np.full(1 + text % 12, text, dtype=np.int64)


class Request:
    """A job, and its client's record of it."""

    def __init__(self, texts, lane):
        self.job = Job()
        self.texts, self.lane = texts, lane
        # Texts without a result.
        self.missing = set(texts)
        self.is_abandoned = False
        self.n_answers = 0

    def __repr__(self) -> str:
        return f"the request for {self.texts} in {self.lane}"


class Worker:
    """A worker process."""

    def __init__(self, seat, backlog, scheduler):
        self.seat, self.backlog, self.scheduler = seat, backlog, scheduler
        self.inbox = deque()
        self.requests: list[Request] = []
        # The batches on the core, and those that the watchdog gave up, which may still end.
        self.running: Sequence[Work] = ()
        self.given_up: Sequence[Work] = ()
        self.is_alive = True
        # The batches of this worker's texts by the simulation's record: number to batch and the worker that has it.
        self.batches: dict[int, tuple[Work, Address]] = {}
        self.n_answered_tokens = seat.board.columns.answered_tokens[seat.address.seat]

    def __repr__(self) -> str:
        return f"worker {self.seat.address.generation}"

    @property
    def may_refuse(self) -> bool:
        return self.scheduler.phase in (SchedulerPhase.RETIRED, SchedulerPhase.CLOSED)


class Simulation:
    """See the module. Each method is an event. A failed check raises AssertionError.

    Args:
        n_computing: How many workers compute at the same time.
        max_sent_ids: See `Scheduler`.
        solo_tokens: See `Scheduler`.
    """

    def __init__(self, n_computing: int, max_sent_ids: int = MAX_SENT_IDS, solo_tokens=()) -> None:
        self.board = Board(memoryview(bytearray(N_SEATS * BYTES_PER_SEAT)))
        self.n_computing, self.max_sent_ids, self.solo_tokens = n_computing, max_sent_ids, solo_tokens
        self.now_s = 0.0
        self.workers: list[Worker] = []
        # Texts that failed or hung alone in a batch. Their jobs may fail.
        self.unlucky: set[tuple[Lane, int]] = set()

    @property
    def living(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_alive]

    def spawn(self) -> bool:
        """A worker starts, if there is a seat."""
        if (seat := self.board.take_seat()) is None:
            return False
        cost = Cost(start_s=8e-4, token_s=1e-4)
        backlog = Backlog(seat.address, [Rows(), Rows()], [cost, cost], "test")
        scheduler = Scheduler(backlog, seat, self.n_computing, self.max_sent_ids, self.solo_tokens)
        self.workers.append(Worker(seat, backlog, scheduler))
        return True

    def accept(self, worker: Worker, texts: list[int], lane: Lane) -> Request:
        """A request arrives."""
        request = Request(texts, lane)
        worker.requests.append(request)
        self._report(worker, worker.scheduler.accept, request.job, lane, [ids(text) for text in texts])
        return request

    def abandon(self, worker: Worker, request: Request) -> None:
        """The request's client leaves."""
        if not request.job.is_done:
            request.is_abandoned = True
        self._report(worker, worker.scheduler.abandon, request.job, TimeoutError())

    def idle(self, worker: Worker) -> bool:
        """If the worker's core is idle, its thread looks for work. Return True if it finds some."""
        if worker.running or worker.scheduler.phase is SchedulerPhase.CLOSED:
            return False
        self._report(worker, worker.scheduler.idle)
        return bool(worker.running)

    def end(self, worker: Worker, error: Exception | None = None) -> None:
        """The worker's core ends its batches with a result or an error."""
        works, worker.running = worker.running, ()
        for work in works:
            if work.owner == worker.seat.address:
                del worker.batches[work.number]
                if error is None:
                    self._note_computed(worker, work)
        if error is None:
            self._report(worker, worker.scheduler.computed, works, _result(works))
        else:
            self._note_unlucky(works)
            self._report(worker, worker.scheduler.failed, works, error)

    def hang(self, worker: Worker) -> None:
        """The watchdog finds that the batch on the worker's core hangs."""
        if worker.may_refuse:
            return
        self._note_unlucky(worker.running)
        worker.given_up, worker.running = worker.running, ()
        worker.batches = {n: one for n, one in worker.batches.items() if one[1] != worker.seat.address}
        self._report(worker, worker.scheduler.hung)

    def end_given_up(self, worker: Worker) -> None:
        """Batches that the watchdog gave up end late."""
        works, worker.given_up = worker.given_up, ()
        self._report(worker, worker.scheduler.computed, works, _result(works))

    def break_backend(self, worker: Worker) -> None:
        """A backend in the worker cannot compute any more."""
        self._report(worker, worker.scheduler.broken)

    def deliver(self, worker: Worker) -> None:
        """The worker reads its next message."""
        kind, *message = worker.inbox.popleft()
        if kind == "wake":
            self.look(worker)
        elif kind == "work":
            self._report(worker, worker.scheduler.received, message[0])
        else:
            number, sender, outcome = message
            work, holder = worker.batches.get(number, (None, None))
            if holder == sender:
                del worker.batches[number]
                if isinstance(outcome, Result):
                    self._note_computed(worker, work)
                elif outcome is Undone.FAILED and len(work.inputs) == 1 and worker.scheduler.may_compute():
                    # The worker keeps the batch, and computes it next.
                    worker.batches[number] = work, worker.seat.address
            self._report(worker, worker.scheduler.returned, number, sender, outcome)

    def look(self, worker: Worker) -> None:
        """Time passes."""
        worker.batches = {
            number: (work, holder) for number, (work, holder) in worker.batches.items() if self.board.is_present(holder)
        }
        self._report(worker, worker.scheduler.look_at_board)

    def kill(self, worker: Worker) -> None:
        """The worker dies. Others still read the messages that it has sent."""
        worker.is_alive = False
        worker.inbox.clear()

    def reap(self, worker: Worker) -> None:
        """The master notices that the worker died."""
        worker.seat.leave()

    def close(self, worker: Worker) -> None:
        """The worker stops in order."""
        worker.batches = {
            n: one for n, one in worker.batches.items() if one[1] != worker.seat.address or one[0] in worker.running
        }
        self._report(worker, worker.scheduler.close)
        if worker.running:
            self.end(worker)
        worker.batches.clear()
        self._report(worker, worker.scheduler.refuse_rest)
        assert all(request.job.is_done for request in worker.requests)
        self.kill(worker)
        self.reap(worker)

    def settle(self) -> None:
        """Run all events until no work remains. Then every job of a living worker must have an answer.

        Workers that cannot compute any more stop meanwhile, as in the server.
        """
        for worker in self.workers:
            if not worker.is_alive:
                self.reap(worker)
        self._run()
        for worker in self.living:
            if worker.scheduler.phase is not SchedulerPhase.SERVING:
                self.close(worker)
        self._run()
        for worker in self.living:
            assert all(request.job.is_done for request in worker.requests), "a job is never answered"
            assert worker.backlog.n_waiting_tokens == 0

    def _run(self) -> None:
        for _ in range(100):
            for worker in self.living:
                while worker.inbox:
                    self.deliver(worker)
                self.look(worker)
                self.idle(worker)
                if worker.running:
                    self.end(worker)
            if all(request.job.is_done for worker in self.living for request in worker.requests):
                return

    def check(self) -> None:
        """Check the conditions that hold at every moment."""
        for worker in self.living:
            columns, seat = self.board.columns, worker.seat.address.seat
            assert worker.backlog.n_waiting_tokens == self._waiting_tokens(worker)
            assert columns.waiting_tokens[seat] == worker.backlog.n_waiting_tokens
            assert columns.answered_tokens[seat] == worker.n_answered_tokens

    def _waiting_tokens(self, worker: Worker) -> int:
        """Return the tokens of texts that an unanswered job wants and no batch has, by the simulation's record."""
        wanted = {
            (request.lane, text) for request in worker.requests if not request.job.is_done for text in request.missing
        }
        in_batches = {(work.lane, int(one[0])) for work, _ in worker.batches.values() for one in work.inputs}
        return sum(len(ids(text)) for _, text in wanted - in_batches)

    def _report(self, worker: Worker, event, *arguments) -> None:
        self.now_s += 1e-3
        for action in event(*arguments, self.now_s):
            self._carry_out(worker, action)

    def _carry_out(self, worker: Worker, action) -> None:
        address = worker.seat.address
        match action:
            case Compute(works, on_all_cores):
                assert not worker.running
                assert len({work.lane for work in works}) == 1, "texts of two lanes are computed together"
                assert len(works) == 1 or not any(work.is_alone for work in works), "a text that is alone has company"
                worker.running, worker.is_on_all_cores = works, on_all_cores
                worker.batches |= {work.number: (work, address) for work in works if work.owner == address}
            case Send(work, to):
                worker.batches[work.number] = work, to
                if not self._send(to, ("work", work)):
                    del worker.batches[work.number]
                    self._report(worker, worker.scheduler.unsent, work)
            case SendBack(work, outcome):
                self._send(work.owner, ("back", work.number, address, outcome), is_sure=True)
            case Wake(other):
                self._send(other, ("wake",))
            case Answer(job):
                self._check_answer(worker, next(one for one in worker.requests if one.job is job))

    def _send(self, to: Address, message, *, is_sure=False) -> bool:
        for worker in self.living:
            if worker.seat.address == to and (is_sure or len(worker.inbox) < MAX_MESSAGES):
                worker.inbox.append(message)
                return True
        # The inbox of a dead worker accepts messages until it is full, and nobody reads them.
        return not is_sure and self.board.is_present(to) and all(one.seat.address != to for one in self.living)

    def _check_answer(self, worker: Worker, request: Request) -> None:
        request.n_answers += 1
        assert request.n_answers == 1, "a job is answered twice"
        assert request.job.is_done
        if (error := request.job.error) is None:
            values = request.job.result().values
            assert values.tolist() == request.texts, "a job gets the values of other texts"
        elif not request.is_abandoned and not worker.may_refuse:
            assert any((request.lane, text) in self.unlucky for text in request.texts), f"a job fails: {error!r}"

    def _note_computed(self, worker: Worker, work: Work) -> None:
        worker.n_answered_tokens += sum(map(len, work.inputs))
        texts = {int(one[0]) for one in work.inputs}
        for request in worker.requests:
            if request.lane == work.lane:
                request.missing -= texts

    def _note_unlucky(self, works: Sequence[Work]) -> None:
        texts = [(work.lane, int(one[0])) for work in works for one in work.inputs]
        if len(texts) == 1:
            self.unlucky.add(texts[0])


def _result(works: Sequence[Work]) -> Result:
    """Return a result with the number of each text, float64, (n_texts,)."""
    return Result(np.array([one[0] for work in works for one in work.inputs], dtype=np.float64))
