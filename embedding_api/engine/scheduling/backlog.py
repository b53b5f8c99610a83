"""What a worker still has to embed: the texts of all its requests, who wants them, and which go together next.

Here every accepted text is answered exactly once, as long as the worker lives. A text is in one place at a time: it
waits, or it is in a batch that some core computes, and a batch ends once: with vectors (`answer`), with an error
(`fail`, `give_up`), or undone (`give_back`). A text that nobody waits for any more leaves at once (`abandon`), or when
its batch ends. Not safe for threads: the dispatcher holds a lock.
"""

import itertools
import os
import threading
import time
from collections.abc import Sequence

import numpy as np

from embedding_api.engine.backends import Backend
from embedding_api.engine.scheduling import batching
from embedding_api.engine.scheduling.cost import Cost
from embedding_api.engine.scheduling.timing import Timing, Trip
from embedding_api.engine.work import Ids, Vectors


class Job:
    """The texts of one request.

    Args:
        timing: Told when a core has its texts, and when it is answered.

    Attributes:
        vectors: float32, (n_texts, dim); complete when `done` is set and `error` is None.
        done: Set when it is answered.
        timing: See above.
    """

    def __init__(self, n_texts: int, dim: int, timing: Timing | None = None) -> None:
        self.vectors: Vectors = np.empty((n_texts, dim), dtype=np.float32)
        self.error: Exception | None = None
        self.done = threading.Event()
        self.timing = timing or Timing()
        # Where its texts are, until it is answered; the backlog's.
        self.texts: Sequence[_Text] = ()
        self._n_missing = n_texts

    def begin(self, trip: Trip) -> None:
        """A core has one of its texts."""
        if not self.done.is_set():
            self.timing.begin(trip)

    def take(self, row: int, vector: Vectors) -> None:
        """One text's vector, float32, (dim,)."""
        self.vectors[row] = vector
        self._n_missing -= 1
        if not self._n_missing:
            self._end()

    def fail(self, error: Exception) -> None:
        """It ends without its vectors; the first error counts."""
        if not self.done.is_set():
            self.error = error
            self._end()

    def _end(self) -> None:
        if not self.done.is_set():
            self.timing.ended_s = time.monotonic()
            self.texts = ()
            self.done.set()


class _Text:
    """One distinct text, and who wants its vector.

    Attributes:
        line: Where it belongs.
        turn_s: When it is due, in the backlog's virtual time.
        wanted_by: The jobs, and the row of each.
        waits: Whether it is in no batch, and shall be.
        alone: Whether a batch that held it failed, so that it is computed by itself now.
        trip: Of the batch that it is in, once a core has it.
    """

    __slots__ = ("alone", "ids", "line", "trip", "turn_s", "waits", "wanted_by")

    def __init__(self, ids: Ids, line: "_Line", turn_s: float) -> None:
        self.ids = ids
        self.line = line
        self.turn_s = turn_s
        self.wanted_by: list[tuple[Job, int]] = []
        self.waits = self.alone = False
        self.trip: Trip | None = None

    @property
    def is_wanted(self) -> bool:
        return any(not job.done.is_set() for job, _ in self.wanted_by)


class Batch:
    """Texts that are computed together.

    Attributes:
        place: Of its backend in the registry.
        n_prompt_tokens: See `Backend.embed`.
        ids: Of each text, int64, (n_tokens,).
        n_tokens: Of all of them.
    """

    def __init__(self, line: "_Line", texts: list[_Text], number: int) -> None:
        self._name = f"{os.getpid()}-{number}"
        self._trip: Trip | None = None
        self.line = line
        self.texts = texts
        self.place = line.place
        self.n_prompt_tokens = line.n_prompt_tokens
        self.ids = [text.ids for text in texts]
        self.n_tokens = sum(map(len, self.ids))

    def begin(self, seat: int) -> None:
        """A core has it now, of the worker that has this seat."""
        trip = Trip(self._name, len(self.ids), self.n_tokens, seat, time.monotonic())
        self._set_trip(trip)
        for job in self.jobs():
            job.begin(trip)

    def end(self) -> None:
        """No core has it any more."""
        if self._trip is not None:
            self._trip.ended_s = time.monotonic()
        self._set_trip(None)

    def _set_trip(self, trip: Trip | None) -> None:
        self._trip = trip
        for text in self.texts:
            text.trip = trip

    def jobs(self) -> list[Job]:
        """Who wants its texts; one that wants several stands there as often."""
        return [job for text in self.texts for job, _ in text.wanted_by]


class _Line:
    """The texts that may travel together, for one backend and with one length of prompt, by turn."""

    def __init__(self, place: int, n_prompt_tokens: int, backend: Backend, cost: Cost) -> None:
        self.place = place
        self.n_prompt_tokens = n_prompt_tokens
        # Every text that is not answered, by its ids.
        self.texts: dict[bytes, _Text] = {}
        self.n_waiting_texts = self.n_waiting_tokens = 0
        # The one that is due next last. Texts that left stay in it until their turn, or until they are many.
        self._waiting: list[_Text] = []
        self._n_left = 0
        self._backend = backend
        self._cost = cost
        # Enough texts to choose from for a full batch, few enough to choose within a fraction of a millisecond.
        self._n_ahead = max(256, backend.max_batch_tokens // 16)
        # A text that is due so much later, in seconds, does not delay another job: a quarter of a full batch.
        self._patience_s = cost.start_s + cost.token_s * backend.max_batch_tokens / 4

    def wait(self, texts: list[_Text]) -> None:
        """Lets texts wait."""
        for text in texts:
            text.waits = True
            self.n_waiting_tokens += len(text.ids)
        self.n_waiting_texts += len(texts)
        self._waiting += texts
        self._waiting.sort(key=lambda text: text.turn_s, reverse=True)

    def leave(self, text: _Text) -> None:
        """Lets a text go that nobody waits for any more, unless a batch has it."""
        if text.waits:
            self._stop_waiting(text)
            self.forget(text)
            self._n_left += 1
            if self._n_left > len(self._waiting) // 2:
                self._waiting = [text for text in self._waiting if text.waits]
                self._n_left = 0

    def next_turn_s(self) -> float:
        """When its next text is due; infinity if none waits."""
        while self._waiting and not self._waiting[-1].waits:
            self._waiting.pop()
            self._n_left -= 1
        return self._waiting[-1].turn_s if self._waiting else float("inf")

    def take(self, n_cores: int) -> list[_Text]:
        """The text that is due next, which must be one, and those that go well with it."""
        # With cores to spare a batch is no more than each one's part, unless starting it would cost more than the rest.
        part = max(self.n_waiting_tokens / n_cores, self._cost.start_s / self._cost.token_s)
        seed = self._waiting.pop()
        batch = [seed]
        if not seed.alone:
            ahead = [text for text in reversed(self._waiting[-self._n_ahead :]) if self._goes_with(text, seed)]
            lengths = [len(text.ids) for text in ahead]
            limit = min(part, self._backend.max_batch_tokens)
            chosen = batching.company(len(seed.ids), lengths, self._backend, self._cost, limit)
            batch += [ahead[position] for position in chosen]
            taken = set(map(id, batch))
            self._waiting[-self._n_ahead :] = [
                text for text in self._waiting[-self._n_ahead :] if id(text) not in taken
            ]
        for text in batch:
            self._stop_waiting(text)
        return batch

    def _stop_waiting(self, text: _Text) -> None:
        text.waits = False
        self.n_waiting_texts -= 1
        self.n_waiting_tokens -= len(text.ids)

    def _goes_with(self, text: _Text, seed: _Text) -> bool:
        is_of_same_job = text.wanted_by[0][0] is seed.wanted_by[0][0]
        is_due_soon = text.turn_s <= seed.turn_s + self._patience_s
        return (is_of_same_job or is_due_soon) and text.waits and not text.alone

    def forget(self, text: _Text) -> None:
        """Whoever wants it from now on wants it anew."""
        del self.texts[text.ids.tobytes()]


class Backlog:
    """The texts that wait in this worker, and those in batches under way.

    Whose turn it is, is fair queueing: a text is due when its job would have come to it if all jobs were served side
    by side, each from the moment it came. So a small job passes a large one's backlog, and no text starves.

    Args:
        backends: In the registry's order.
        costs: Of a batch, for each of them.
    """

    def __init__(self, backends: Sequence[Backend], costs: Sequence[Cost]) -> None:
        self._backends = backends
        self._costs = costs
        self._lines: dict[tuple[int, int], _Line] = {}
        # Virtual time: seconds of computing that a job would have had since the start, had it always been there.
        self._now_s = 0.0
        self._numbers = itertools.count(1)

    @property
    def n_waiting_tokens(self) -> int:
        """Tokens of the texts that no core has taken yet."""
        return sum(line.n_waiting_tokens for line in self._lines.values())

    @property
    def n_waiting_texts(self) -> int:
        """The texts that no core has taken yet."""
        return sum(line.n_waiting_texts for line in self._lines.values())

    def add(self, job: Job, place: int, ids: Sequence[Ids], n_prompt_tokens: int) -> int:
        """Accepts the texts of a job; one that is here already, and not yet answered, is not computed again.

        Args:
            job: Who wants them.
            place: Of its backend in the registry.
            ids: Token ids of each text, int64, (n_tokens,), n_tokens >= 1.
            n_prompt_tokens: See `Backend.embed`.

        Returns:
            How many texts need no computing of their own for that.
        """
        line = self._line(place, n_prompt_tokens)
        cost = self._costs[place]
        turn_s = self._now_s + cost.start_s
        new: list[_Text] = []
        texts = []
        # Longest first, so that what is left at the end is small, and all cores end together.
        for row in sorted(range(len(ids)), key=lambda row: len(ids[row]), reverse=True):
            turn_s += cost.token_s * len(ids[row])
            text = line.texts.get(key := ids[row].tobytes())
            if text is None:
                text = line.texts[key] = _Text(ids[row], line, turn_s)
                new.append(text)
            text.turn_s = min(text.turn_s, turn_s)
            text.wanted_by.append((job, row))
            if text.trip is not None:
                job.begin(text.trip)
            texts.append(text)
        job.texts = texts
        line.wait(new)
        return len(texts) - len(new)

    def abandon(self, job: Job, error: Exception) -> int:
        """Nobody waits for a job any more: it fails, and its texts leave, but for those that others want.

        Returns:
            How many texts will not be computed for that.
        """
        texts = job.texts
        job.fail(error)
        n_left = 0
        for text in texts:
            if text.waits and not text.is_wanted:
                text.line.leave(text)
                n_left += 1
        return n_left

    def take(self, n_cores: int) -> Batch | None:
        """The next batch, or None if no text waits.

        Args:
            n_cores: Cores that are free for what waits here; this batch leaves the others their part.
        """
        line = min(self._lines.values(), key=_Line.next_turn_s, default=None)
        if line is None or (due_s := line.next_turn_s()) == float("inf"):
            return None
        self._now_s = max(self._now_s, due_s)
        return Batch(line, line.take(n_cores), next(self._numbers))

    def answer(self, batch: Batch, vectors: Vectors) -> None:
        """A batch was computed.

        Args:
            batch: What `take` gave.
            vectors: float32, (n_texts, dim), in the order of the batch.
        """
        batch.end()
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
        else:
            self.give_up(batch, error)

    def give_up(self, batch: Batch, error: Exception) -> None:
        """A batch will not be computed: whoever wants a text of it gets the error."""
        batch.end()
        for text in batch.texts:
            batch.line.forget(text)
        for job in batch.jobs():
            self.abandon(job, error)

    def give_back(self, batch: Batch) -> None:
        """A batch was not computed; its texts wait again, each for the turn that it had."""
        batch.end()
        for text in batch.texts:
            if not text.is_wanted:
                batch.line.forget(text)
        batch.line.wait([text for text in batch.texts if text.is_wanted])

    def refuse(self, error: Exception) -> None:
        """Nothing that waits will be computed any more; batches under way may still end."""
        while (batch := self.take(1)) is not None:
            self.give_up(batch, error)

    def _line(self, place: int, n_prompt_tokens: int) -> _Line:
        key = place, n_prompt_tokens
        if key not in self._lines:
            self._lines[key] = _Line(place, n_prompt_tokens, self._backends[place], self._costs[place])
        return self._lines[key]
