"""Where the time of a request went: its stages, and the batches that held its texts."""

from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class BatchRun:
    """One run of a batch, in the records of the requests whose texts it holds. Times are on the monotonic clock.

    Attributes:
        batch: Name of the batch, unique on this machine while the process lives that formed it.
        n_texts: All its texts, of this request and of others.
        n_tokens: Tokens of all its texts.
        seat: Seat of the worker that computes it.
        handed_over_s: When it was sent to that worker, or when the core got it in the worker that formed it.
        ended_s: When the run ended, with a result or without; None before.
    """

    batch: str
    n_texts: int
    n_tokens: int
    seat: int
    handed_over_s: float
    ended_s: float | None = None


@dataclass
class Timing:
    """The times at which the stages of a request began and ended, on the monotonic clock; None if not reached.

    Attributes:
        read_s: The tokenizer got the texts.
        queued_s: The token ids began to wait for a core.
        handed_over_s: The first of them went to a core, or to another worker, where it may wait a little.
        ended_s: The last text had its result, or the request failed.
        runs: The runs of its texts, in the order in which they were handed over.
    """

    read_s: float | None = None
    queued_s: float | None = None
    handed_over_s: float | None = None
    ended_s: float | None = None
    runs: list[BatchRun] = field(default_factory=list)

    @property
    def tokenize_s(self) -> float:
        """Seconds that the tokenizer took."""
        return _between(self.read_s, self.queued_s)

    @property
    def queue_s(self) -> float:
        """Seconds until the first text was handed over."""
        return _between(self.queued_s, self.handed_over_s)

    @property
    def inference_s(self) -> float:
        """Seconds from then on until the last text had its result."""
        return _between(self.handed_over_s, self.ended_s)

    def note_run(self, run: BatchRun) -> None:
        """Note a run of one of the texts."""
        if self.handed_over_s is None:
            # The text may have been handed over for another request, before this one came.
            self.handed_over_s = max(run.handed_over_s, self.queued_s or run.handed_over_s)
        if run not in self.runs:
            self.runs.append(run)


def _between(first_s: float | None, last_s: float | None) -> float:
    return 0.0 if first_s is None or last_s is None else last_s - first_s
