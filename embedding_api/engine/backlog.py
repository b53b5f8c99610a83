"""What a worker still has to embed: the texts of all its requests, who wants them, and which go together next.

Here every accepted text is answered exactly once, as long as the worker lives. A text is in one place at a time: it
waits, or it is in a batch that some core computes, and a batch ends once: with vectors (`answer`), with an error
(`fail`), or undone (`give_back`). Not safe for threads: the dispatcher holds a lock.
"""

import threading
import time
from collections.abc import Sequence

import numpy as np

from embedding_api.engine import batching
from embedding_api.engine.arrays import Ids, Vectors
from embedding_api.engine.backends import Backend
from embedding_api.engine.cost import Cost

# Texts that are cut into batches together: enough to find company for each, few enough to cut within a millisecond.
_AHEAD = 256


class Job:
    """The texts of one request.

    Attributes:
        vectors: float32, (n_texts, dim); complete when `done` is set and `error` is None.
        done: Set when it is answered.
        queue_s: Seconds until a core took the first of its texts.
        inference_s: Seconds from then on until it was answered.
    """

    def __init__(self, n_texts: int, dim: int) -> None:
        self.vectors: Vectors = np.empty((n_texts, dim), dtype=np.float32)
        self.error: Exception | None = None
        self.done = threading.Event()
        self.queue_s = self.inference_s = 0.0
        self._n_missing = n_texts
        self._arrived_s = time.monotonic()
        self._begun_s: float | None = None

    def begin(self) -> None:
        """A core took one of its texts."""
        if self._begun_s is None:
            self._begun_s = time.monotonic()
            self.queue_s = self._begun_s - self._arrived_s

    def take(self, row: int, vector: Vectors) -> None:
        """One text's vector, float32, (dim,)."""
        self.vectors[row] = vector
        self._n_missing -= 1
        if not self._n_missing:
            self._end()

    def fail(self, error: Exception) -> None:
        """One text has no vector, so the job has none; the first error counts."""
        if not self.done.is_set():
            self.error = error
            self._end()

    def _end(self) -> None:
        if not self.done.is_set():
            if self._begun_s is not None:
                self.inference_s = time.monotonic() - self._begun_s
            self.done.set()


class _Text:
    """One distinct text, and who wants its vector.

    Attributes:
        turn: When it is due, in the backlog's virtual time.
        wanted_by: The jobs, and the row of each.
        alone: Whether a batch that held it failed, so that it is computed by itself now.
    """

    __slots__ = ("alone", "ids", "turn", "wanted_by")

    def __init__(self, ids: Ids, turn: float) -> None:
        self.ids = ids
        self.turn = turn
        self.wanted_by: list[tuple[Job, int]] = []
        self.alone = False

    @property
    def is_wanted(self) -> bool:
        return any(not job.done.is_set() for job, _ in self.wanted_by)


class Batch:
    """Texts that are computed together.

    Attributes:
        model: Its place in the registry.
        n_prompt_tokens: See `Backend.embed`.
        ids: Of each text, int64, (n_tokens,).
    """

    def __init__(self, line: "_Line", texts: list[_Text]) -> None:
        self.line = line
        self.texts = texts
        self.model = line.model
        self.n_prompt_tokens = line.n_prompt_tokens
        self.ids = [text.ids for text in texts]


class _Line:
    """The texts that may travel together, being of one model and one length of prompt, by turn."""

    def __init__(self, model: int, n_prompt_tokens: int, backend: Backend, cost: Cost) -> None:
        self.model = model
        self.n_prompt_tokens = n_prompt_tokens
        self.texts: dict[bytes, _Text] = {}
        self.n_waiting_tokens = 0
        self._cost = cost
        self._backend = backend
        # Both with the next one last: texts, and what of them has been cut into batches of at most `_limit` tokens.
        self._waiting: list[_Text] = []
        self._batches: list[list[_Text]] = []
        self._limit = 0.0

    def wait(self, texts: list[_Text]) -> None:
        """Lets texts wait; what was cut is cut anew, so that they may join it."""
        self.n_waiting_tokens += sum(len(text.ids) for text in texts)
        self._waiting += texts
        for batch in self._batches:
            self._waiting += batch
        self._batches = []
        self._waiting.sort(key=_turn, reverse=True)

    def next_turn(self) -> float:
        """When its next text is due; infinity if none waits."""
        if self._batches:
            return _turn_of_batch(self._batches[-1])
        return self._waiting[-1].turn if self._waiting else float("inf")

    def take(self, n_cores: int) -> list[_Text]:
        """The batch with the text that is due next; empty if none is wanted any more."""
        # With cores to spare a batch is no more than each one's part, unless starting it would cost more than the rest.
        part = max(self.n_waiting_tokens / n_cores, self._cost.start_tokens)
        limit = min(part, float(self._backend.max_batch_tokens))
        if limit != self._limit:
            self.wait([])
            self._limit = limit
        if not self._batches:
            self._cut()
        texts = self._batches.pop() if self._batches else []
        self.n_waiting_tokens -= sum(len(text.ids) for text in texts)
        return texts

    def _cut(self) -> None:
        ahead: list[_Text] = []
        while self._waiting and len(ahead) < _AHEAD:
            text = self._waiting.pop()
            if text.is_wanted:
                ahead.append(text)
            else:
                self.forget(text)
                self.n_waiting_tokens -= len(text.ids)
        self._batches = [[text] for text in ahead if text.alone]
        company = sorted((text for text in ahead if not text.alone), key=_length, reverse=True)
        begin = 0
        for end in batching.cut([len(text.ids) for text in company], self._backend, self._cost, self._limit):
            self._batches.append(company[begin:end])
            begin = end
        self._batches.sort(key=_turn_of_batch, reverse=True)

    def forget(self, text: _Text) -> None:
        """Whoever wants it from now on wants it anew."""
        del self.texts[text.ids.tobytes()]


def _turn(text: _Text) -> float:
    return text.turn


def _length(text: _Text) -> int:
    return len(text.ids)


def _turn_of_batch(texts: list[_Text]) -> float:
    return min(text.turn for text in texts)


class Backlog:
    """The texts that wait in this worker, and those in batches under way.

    Whose turn it is, is fair queueing: a text is due when its job would have come to it if all jobs were served side
    by side, each from the moment it came. So a small job passes a large one's backlog, and no text starves.

    Args:
        backends: Of each model, in the registry's order.
        costs: Of a batch, for each of them.
    """

    def __init__(self, backends: Sequence[Backend], costs: Sequence[Cost]) -> None:
        self._backends = backends
        self._costs = costs
        self._lines: dict[tuple[int, int], _Line] = {}
        # Virtual time: seconds of computing that a job would have had since the start, had it always been there.
        self._now = 0.0

    @property
    def n_waiting_tokens(self) -> int:
        """Tokens of the texts that no core has taken yet."""
        return sum(line.n_waiting_tokens for line in self._lines.values())

    def add(self, job: Job, model: int, ids: Sequence[Ids], n_prompt_tokens: int) -> None:
        """Accepts the texts of a job; one that is here already, and not yet answered, is not computed again.

        Args:
            job: Who wants them.
            model: Its place in the registry.
            ids: Token ids of each text, int64, (n_tokens,), n_tokens >= 1.
            n_prompt_tokens: See `Backend.embed`.
        """
        line = self._line(model, n_prompt_tokens)
        turn = self._now
        new = []
        # Longest first, so that what is left at the end is small, and all cores end together.
        for row in sorted(range(len(ids)), key=lambda row: len(ids[row]), reverse=True):
            turn += self._costs[model].token_s * len(ids[row])
            text = line.texts.get(key := ids[row].tobytes())
            if text is None:
                text = line.texts[key] = _Text(ids[row], turn)
                new.append(text)
            text.turn = min(text.turn, turn)
            text.wanted_by.append((job, row))
        line.wait(new)

    def take(self, n_cores: int) -> Batch | None:
        """The next batch, or None if no text waits.

        Args:
            n_cores: Cores that are free for what waits here; this batch leaves the others their part.
        """
        while self._lines:
            line = min(self._lines.values(), key=_Line.next_turn)
            due = line.next_turn()
            if due == float("inf"):
                return None
            if texts := line.take(n_cores):
                self._now = max(self._now, due)
                batch = Batch(line, texts)
                for job, _ in _wanted(batch):
                    job.begin()
                return batch
        return None

    def answer(self, batch: Batch, vectors: Vectors) -> None:
        """A batch was computed.

        Args:
            batch: What `take` gave.
            vectors: float32, (n_texts, dim), in the order of the batch.
        """
        for text, vector in zip(batch.texts, vectors, strict=True):
            batch.line.forget(text)
            for job, row in text.wanted_by:
                job.take(row, vector)

    def fail(self, batch: Batch, error: Exception) -> None:
        """Computing a batch failed: its texts are tried one by one, and who wants one that fails gets the error."""
        if len(batch.texts) > 1:
            for text in batch.texts:
                text.alone = True
            self.give_back(batch)
            return
        for text in batch.texts:
            batch.line.forget(text)
        for job, _ in _wanted(batch):
            job.fail(error)

    def give_back(self, batch: Batch) -> None:
        """A batch was not computed; its texts wait again, each for the turn that it had."""
        batch.line.wait(batch.texts)

    def refuse(self, error: Exception) -> None:
        """Nothing that waits will be computed any more; batches under way may still end."""
        for line in self._lines.values():
            while texts := line.take(1):
                for text in texts:
                    line.forget(text)
                    for job, _ in text.wanted_by:
                        job.fail(error)

    def _line(self, model: int, n_prompt_tokens: int) -> _Line:
        key = model, n_prompt_tokens
        if key not in self._lines:
            self._lines[key] = _Line(model, n_prompt_tokens, self._backends[model], self._costs[model])
        return self._lines[key]


def _wanted(batch: Batch) -> list[tuple[Job, int]]:
    return [wanted for text in batch.texts for wanted in text.wanted_by]
