"""The texts that a worker must still answer: which are due next, and in which batches the others are.

A text is in one place at a time: it waits in the queue of its lane, or it is in one batch. A batch ends once: with a
result, with an error, or undone, and then its texts wait again.
"""

import itertools
import math
from collections.abc import Sequence

from embedding_api.engine.scheduling.actions import Answer
from embedding_api.engine.scheduling.batch import Batch, BatchState
from embedding_api.engine.scheduling.cost import Cost, Sizing
from embedding_api.engine.scheduling.job import Job
from embedding_api.engine.scheduling.lane import LaneQueue
from embedding_api.engine.scheduling.pack import Pack
from embedding_api.engine.work import Address, Ids, Lane, Result, Work


class Backlog:
    """The texts of this worker's jobs that are not answered. It has a method for each way in which a batch ends.

    Fair queueing decides which text is next. Imagine that all jobs are served at the same time, each at an equal share
    of the speed: a text is due when its job would reach it. A small job passes a large one, and no text starves.

    Args:
        owner: This worker.
        sizings: How many tokens the backends compute, in the registry's order.
        costs: What a batch costs, for each of them.
        process: A name of this process that no other on this machine has, for the names of batches.
    """

    def __init__(self, owner: Address, sizings: Sequence[Sizing], costs: Sequence[Cost], process: str) -> None:
        self._owner = owner
        self._sizings = sizings
        self._costs = costs
        self._process = process
        self._queues: dict[Lane, LaneQueue] = {}
        # Batches that have not ended, by number.
        self._batches: dict[int, Batch] = {}
        # Virtual time: seconds of computing that a job would have had since the start, had it always been there.
        self._virtual_s = 0.0
        self._numbers = itertools.count(1)

    @property
    def is_empty(self) -> bool:
        """True if there is no text that is not answered."""
        return not self._batches and not self.n_waiting_texts

    @property
    def target_tokens(self) -> int:
        """The size of a full batch, in computed tokens."""
        return max(sizing.target_batch_tokens for sizing in self._sizings)

    @property
    def n_waiting_texts(self) -> int:
        """Texts that are in no batch."""
        return sum(queue.n_waiting_texts for queue in self._queues.values())

    @property
    def n_waiting_tokens(self) -> int:
        """Tokens of the texts that are in no batch."""
        return sum(queue.n_waiting_tokens for queue in self._queues.values())

    def add(self, job: Job, lane: Lane, inputs: Sequence[Ids]) -> None:
        """Accept the texts of a job. A text that is here already, and not yet answered, is not computed twice."""
        queue = self._queues.get(lane)
        if queue is None:
            queue = LaneQueue(lane, self._sizings[lane.backend], self._costs[lane.backend])
            self._queues[lane] = queue
        cost = self._costs[lane.backend]
        due_s = self._virtual_s + cost.start_s
        texts, new = [], []
        # Longest first, so that little is left at the end, and all cores end together.
        for row in sorted(range(len(inputs)), key=lambda row: len(inputs[row]), reverse=True):
            due_s += cost.token_s * len(inputs[row])
            text, is_new = queue.find_or_add(inputs[row], due_s)
            if is_new:
                new.append(text)
            text.wanted_by.append((job, row))
            if text.run is not None:
                job.note_run(text.run)
            texts.append(text)
        job.expect(texts)
        job.n_duplicates = len(texts) - len(new)
        queue.wait(new)

    def abandon(self, job: Job, error: Exception, now_s: float) -> list[Answer]:
        """Answer a job with an error, and drop its waiting texts, except those that other jobs want."""
        texts = job.texts
        if not job.fail(error, now_s):
            return []
        # A request may hold a text twice; it leaves once.
        for text in texts:
            if text.waits and not text.is_wanted:
                text.queue.leave(text)
                job.n_dropped += 1
        return [Answer(job)]

    @property
    def lone_lane(self) -> Lane | None:
        """The lane of the texts that wait, if they make one batch because it would take longer to start two."""
        waiting = [queue for queue in self._queues.values() if queue.n_waiting_texts]
        return waiting[0].lane if len(waiting) == 1 and waiting[0].is_one_batch else None

    @property
    def least_tokens(self) -> float:
        """The fewest tokens of a batch of the lane that is due next; infinity if no text waits. See `LaneQueue`."""
        queue = self._next_queue()
        return math.inf if queue is None else queue.least_tokens

    def form_batch(self, share_tokens: float = math.inf) -> Batch | None:
        """Return a new batch of the texts that are due; None if no text waits.

        Args:
            share_tokens: The share of a core in the tokens that wait. A batch has at most as many, or the least.
        """
        queue = self._next_queue()
        return None if queue is None else self._form(queue, max(share_tokens, queue.least_tokens))

    def fill(self, pack: Pack, now_s: float) -> None:
        """Add the texts that are due to a pack, as one more batch, if they fit."""
        queue = self._next_queue()
        if queue is None or queue.lane != pack.lane or queue.next_tokens() > pack.room_tokens:
            return
        before_s = self._virtual_s
        batch = self._form(queue, pack.room_tokens)
        if not pack.take(batch.work):
            self.requeue(batch, now_s)
            self._virtual_s = before_s

    def _next_queue(self) -> LaneQueue | None:
        """Return the queue of the text that is due next; None if no text waits."""
        queue = min(self._queues.values(), key=LaneQueue.next_due_s, default=None)
        return queue if queue is not None and queue.n_waiting_texts else None

    def _form(self, queue: LaneQueue, max_tokens: float) -> Batch:
        self._virtual_s = max(self._virtual_s, queue.next_due_s())
        texts = queue.pop_batch(max_tokens)
        number = next(self._numbers)
        work = Work(self._owner, number, queue.lane, [text.ids for text in texts], texts[0].is_alone)
        batch = self._batches[number] = Batch(work, queue, texts, f"{self._process}-{number}")
        return batch

    def pack(self, first: Work) -> Pack:
        """Return a pack that holds a batch of any worker."""
        return Pack(first, self._sizings[first.lane.backend], self._costs[first.lane.backend])

    def batch(self, number: int) -> Batch:
        """Return the batch of this number, which has not ended."""
        return self._batches[number]

    def batches_away(self) -> list[Batch]:
        """Return the batches that other workers have."""
        return [batch for batch in self._batches.values() if batch.state is BatchState.AWAY]

    def longest_away_s(self, now_s: float) -> float:
        """Return the seconds for which another worker has had the oldest batch that is away; 0 if none is."""
        return now_s - min((batch.handed_over_s for batch in self.batches_away()), default=now_s)

    def find_away(self, number: int, worker: Address) -> Batch | None:
        """Return a batch that `worker` has; None if its texts wait again, or are in other batches.

        Its result may still come. It is not needed, because the other result is the same.
        """
        batch = self._batches.get(number)
        return batch if batch is not None and batch.state is BatchState.AWAY and batch.worker == worker else None

    def answer(self, batch: Batch, result: Result, now_s: float) -> list[Answer]:
        """End a batch that was computed."""
        self._end(batch, now_s)
        answers = []
        for index, text in enumerate(batch.texts):
            batch.queue.forget(text)
            answers += [Answer(job) for job, row in text.wanted_by if job.put(row, result, index, now_s)]
        return answers

    def fail(self, batch: Batch, error: Exception, now_s: float) -> list[Answer]:
        """End a batch that failed: its texts wait again, to be computed one by one; a text that failed alone fails."""
        if len(batch.texts) == 1:
            return self.end_with_error(batch, error, now_s)
        self.separate(batch, now_s)
        return []

    def separate(self, batch: Batch, now_s: float) -> None:
        """End a batch that was not computed: its texts wait again, to be computed one by one."""
        for text in batch.texts:
            text.is_alone = True
        self.requeue(batch, now_s)

    def end_with_error(self, batch: Batch, error: Exception, now_s: float) -> list[Answer]:
        """End a batch that will not be computed: the jobs that want its texts get the error."""
        self._end(batch, now_s)
        for text in batch.texts:
            batch.queue.forget(text)
        wanted_by = [job for text in batch.texts for job, _ in text.wanted_by]
        return [answer for job in wanted_by for answer in self.abandon(job, error, now_s)]

    def requeue(self, batch: Batch, now_s: float) -> None:
        """End a batch that was not computed: its texts wait again, and each is due when it was."""
        self._end(batch, now_s)
        for text in batch.texts:
            if not text.is_wanted:
                batch.queue.forget(text)
        batch.queue.wait([text for text in batch.texts if text.is_wanted], again=True)

    def refuse_waiting(self, error: Exception, now_s: float) -> list[Answer]:
        """Answer with an error the jobs whose texts wait. Batches that other workers have may still end."""
        answers = []
        while (batch := self.form_batch()) is not None:
            answers += self.end_with_error(batch, error, now_s)
        return answers

    def _end(self, batch: Batch, now_s: float) -> None:
        del self._batches[batch.work.number]
        batch.end(now_s)
