"""Workers of a server without threads and sockets: real schedulers on a real board, and messages that wait in lists.

Whatever order events come in, it checks what the schedulers promise, against a model of its own: which texts are
wanted, and which batches are where.
"""

from collections import deque

import numpy as np

from embedding_api.engine.scheduling.actions import Answer, Compute, Send, SendBack, SendResult, Wake
from embedding_api.engine.scheduling.backlog import Backlog
from embedding_api.engine.scheduling.board import BYTES_PER_SEAT, Board
from embedding_api.engine.scheduling.cost import Cost
from embedding_api.engine.scheduling.job import Job
from embedding_api.engine.scheduling.phase import Phase
from embedding_api.engine.scheduling.scheduler import Scheduler
from embedding_api.engine.work import Address, Lane, Result, Undone, Work

N_SEATS = 4
# Of an inbox: a worker that reads nothing takes no more.
MAX_MESSAGES = 3
MAX_SENT_IDS = 200


class Rows:
    """A padded layout."""

    target_batch_tokens = 64

    def n_computed(self, n_texts, longest, n_tokens):
        return n_texts * longest


def ids(text: int) -> np.ndarray:
    """Token ids of the text of this number: 1 to 12 of them."""
    return np.full(1 + text % 12, text, dtype=np.int64)


class Request:
    """A job, and what a client knows of it."""

    def __init__(self, texts, lane):
        self.job = Job()
        self.texts, self.lane = texts, lane
        # Those that no batch has given yet.
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
        # On the core; and on a core that was given up, and may end nevertheless.
        self.running: Work | None = None
        self.given_up: Work | None = None
        self.is_alive = True
        # Where its batches are, by the model: the worker that has each.
        self.batches: dict[int, tuple[Work, Address]] = {}
        self.n_answered_tokens = seat.board.columns.answered_tokens[seat.address.seat]

    def __repr__(self) -> str:
        return f"worker {self.seat.address.generation}"

    @property
    def may_refuse(self) -> bool:
        return self.scheduler.phase in (Phase.RETIRED, Phase.CLOSED)


class Simulation:
    """See the module. Each method is an event; a failed check is an AssertionError.

    Args:
        n_computing: How many workers compute at the same time.
    """

    def __init__(self, n_computing: int) -> None:
        self.board = Board(memoryview(bytearray(N_SEATS * BYTES_PER_SEAT)))
        self.n_computing = n_computing
        self.now_s = 0.0
        self.workers: list[Worker] = []
        # Texts that failed, or hung, when they were alone in a batch: their jobs may fail.
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
        scheduler = Scheduler(backlog, seat, self.n_computing, MAX_SENT_IDS)
        self.workers.append(Worker(seat, backlog, scheduler))
        return True

    def accept(self, worker: Worker, texts: list[int], lane: Lane) -> Request:
        """A request comes."""
        request = Request(texts, lane)
        worker.requests.append(request)
        self._report(worker, worker.scheduler.accept, request.job, lane, [ids(text) for text in texts])
        return request

    def abandon(self, worker: Worker, request: Request) -> None:
        """Its client leaves."""
        if not request.job.is_done:
            request.is_abandoned = True
        self._report(worker, worker.scheduler.abandon, request.job, TimeoutError())

    def idle(self, worker: Worker) -> bool:
        """The thread of its core looks for work, if it is idle. Return True if it finds any."""
        if worker.running is not None or worker.scheduler.phase is Phase.CLOSED:
            return False
        self._report(worker, worker.scheduler.idle)
        return worker.running is not None

    def end(self, worker: Worker, error: Exception | None = None) -> None:
        """Its core ends a batch: with a result, or with an error."""
        work, worker.running = worker.running, None
        if work.owner == worker.seat.address:
            del worker.batches[work.number]
            if error is None:
                self._note_computed(worker, work)
        if error is None:
            self._report(worker, worker.scheduler.computed, work, _result(work))
        else:
            self._note_unlucky(work)
            self._report(worker, worker.scheduler.failed, work, error)

    def hang(self, worker: Worker) -> None:
        """The watchdog finds that the batch on its core hangs."""
        if worker.may_refuse:
            return
        self._note_unlucky(worker.running)
        worker.given_up, worker.running = worker.running, None
        worker.batches = {n: one for n, one in worker.batches.items() if one[1] != worker.seat.address}
        self._report(worker, worker.scheduler.hung)

    def end_given_up(self, worker: Worker) -> None:
        """A batch that was given up ends nevertheless."""
        work, worker.given_up = worker.given_up, None
        self._report(worker, worker.scheduler.computed, work, _result(work))

    def break_backend(self, worker: Worker) -> None:
        """A backend cannot compute in it any more."""
        self._report(worker, worker.scheduler.broken)

    def deliver(self, worker: Worker) -> None:
        """It reads its next message."""
        kind, *message = worker.inbox.popleft()
        if kind == "wake":
            self.look(worker)
        elif kind == "work":
            self._report(worker, worker.scheduler.received, message[0])
        else:
            number, sender, content = message
            work, holder = worker.batches.get(number, (None, None))
            if holder == sender:
                del worker.batches[number]
                if kind == "result":
                    self._note_computed(worker, work)
                elif content is Undone.FAILED and len(work.inputs) == 1 and worker.scheduler.may_compute():
                    # It is kept, and runs here next.
                    worker.batches[number] = work, worker.seat.address
            event = worker.scheduler.delivered if kind == "result" else worker.scheduler.returned
            self._report(worker, event, number, sender, content)

    def look(self, worker: Worker) -> None:
        """Time passes."""
        worker.batches = {
            number: (work, holder) for number, (work, holder) in worker.batches.items() if self.board.is_present(holder)
        }
        self._report(worker, worker.scheduler.look_at_board)

    def kill(self, worker: Worker) -> None:
        """It dies; what it has sent is still read."""
        worker.is_alive = False
        worker.inbox.clear()

    def reap(self, worker: Worker) -> None:
        """The master notices that it died."""
        worker.seat.leave()

    def close(self, worker: Worker) -> None:
        """It ends in order."""
        worker.batches = {
            n: one for n, one in worker.batches.items() if one[1] != worker.seat.address or one[0] is worker.running
        }
        self._report(worker, worker.scheduler.close)
        if worker.running is not None:
            self.end(worker)
        worker.batches.clear()
        self._report(worker, worker.scheduler.refuse_rest)
        assert all(request.job.is_done for request in worker.requests)
        self.kill(worker)
        self.reap(worker)

    def settle(self) -> None:
        """Everything runs until nothing is left to do; then every job of a living worker is answered.

        Workers that can compute nothing any more end in between, as the server would have them.
        """
        for worker in self.workers:
            if not worker.is_alive:
                self.reap(worker)
        self._run()
        for worker in self.living:
            if worker.scheduler.phase is not Phase.SERVING:
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
                if worker.running is not None:
                    self.end(worker)
            if all(request.job.is_done for worker in self.living for request in worker.requests):
                return

    def check(self) -> None:
        """What holds at any moment."""
        for worker in self.living:
            columns, seat = self.board.columns, worker.seat.address.seat
            assert worker.backlog.n_waiting_tokens == self._waiting_tokens(worker)
            assert columns.waiting_tokens[seat] == worker.backlog.n_waiting_tokens
            assert columns.answered_tokens[seat] == worker.n_answered_tokens

    def _waiting_tokens(self, worker: Worker) -> int:
        """By the model: tokens of the texts that an unanswered job wants, and that are in no batch."""
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
            case Compute(work):
                assert worker.running is None
                worker.running = work
                if work.owner == address:
                    worker.batches[work.number] = work, address
            case Send(work, to):
                worker.batches[work.number] = work, to
                if not self._send(to, ("work", work)):
                    del worker.batches[work.number]
                    self._report(worker, worker.scheduler.unsent, work)
            case SendResult(work, result):
                self._send(work.owner, ("result", work.number, address, result), is_sure=True)
            case SendBack(work, why):
                self._send(work.owner, ("back", work.number, address, why), is_sure=True)
            case Wake(other):
                self._send(other, ("wake",))
            case Answer(job):
                self._check_answer(worker, next(one for one in worker.requests if one.job is job))

    def _send(self, to: Address, message, *, is_sure=False) -> bool:
        for worker in self.living:
            if worker.seat.address == to and (is_sure or len(worker.inbox) < MAX_MESSAGES):
                worker.inbox.append(message)
                return True
        # Nobody reads the inbox of a worker that died, which takes messages until it is full.
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

    def _note_unlucky(self, work: Work) -> None:
        if len(work.inputs) == 1:
            self.unlucky.add((work.lane, int(work.inputs[0][0])))


def _result(work: Work) -> Result:
    """The number of each text, float64, (n_texts,)."""
    return Result(np.array([one[0] for one in work.inputs], dtype=np.float64))
