"""The texts of one request, and each distinct text with the jobs that want it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from embedding_api.engine.scheduling.timing import BatchRun, Timing
from embedding_api.engine.work import Ids, Result

if TYPE_CHECKING:
    from embedding_api.engine.scheduling.lane import LaneQueue


class Job:
    """The texts of one request. The scheduler answers it once: with a result, or with an error.

    Args:
        timing: Filled while the job is served.

    Attributes:
        error: Why there is no result; None if there is one, or not yet.
        is_done: True once the job is answered.
        n_duplicates: Its texts that equal a text of another job that is not answered, or an earlier one of its own.
        n_dropped: Its texts that will not be computed, since it was abandoned.
        texts: Its texts, until it is answered.
    """

    __slots__ = ("_n_missing", "_rows", "error", "is_done", "n_dropped", "n_duplicates", "texts", "timing")

    def __init__(self, timing: Timing | None = None) -> None:
        self.timing = timing or Timing()
        self.error: Exception | None = None
        self.is_done = False
        self.n_duplicates = self.n_dropped = 0
        self.texts: Sequence[Text] = ()
        self._rows: list[tuple[Result, int] | None] = []
        self._n_missing = 0

    def expect(self, texts: Sequence["Text"]) -> None:
        """Note the texts, in any order. `put` gets the values of each."""
        self.texts = texts
        self._rows = [None] * len(texts)
        self._n_missing = len(texts)

    def note_run(self, run: BatchRun) -> None:
        """Note a run of one of the texts."""
        if not self.is_done:
            self.timing.note_run(run)

    def put(self, row: int, result: Result, index: int, now_s: float) -> bool:
        """Take the values of the text in this row, at `index` of `result`. Return True if this answers the job."""
        if self.is_done:
            return False
        self._rows[row] = result, index
        self._n_missing -= 1
        return not self._n_missing and self._end(now_s)

    def fail(self, error: Exception, now_s: float) -> bool:
        """Answer the job with an error. Return False if it was answered before."""
        if self.is_done:
            return False
        self.error = error
        self._rows = []
        return self._end(now_s)

    def result(self) -> Result:
        """Return the values of all texts, in the order of the request, once the job is done without an error."""
        return Result.gathered([row for row in self._rows if row is not None])

    def _end(self, now_s: float) -> bool:
        self.timing.ended_s = now_s
        self.texts = ()
        self.is_done = True
        return True


class Text:
    """One distinct text of a lane, and the jobs that want it.

    Attributes:
        ids: Token ids, int64, (n_tokens,).
        queue: The queue of its lane.
        due_s: When it is due, in the backlog's virtual time.
        wanted_by: The jobs that want it, and its row in each.
        waits: True while it waits in its queue, and is in no batch.
        is_alone: True once a batch that held it failed: it is computed by itself from then on.
        run: The run of the batch that it is in, once that is handed over.
    """

    __slots__ = ("due_s", "ids", "is_alone", "queue", "run", "waits", "wanted_by")

    def __init__(self, ids: Ids, queue: "LaneQueue", due_s: float) -> None:
        self.ids = ids
        self.queue = queue
        self.due_s = due_s
        self.wanted_by: list[tuple[Job, int]] = []
        self.waits = self.is_alone = False
        self.run: BatchRun | None = None

    @property
    def is_wanted(self) -> bool:
        """True while a job waits for it."""
        return any(not job.is_done for job, _ in self.wanted_by)
