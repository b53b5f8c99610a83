"""Where the time of a request went: its stages, and the batches that held its texts."""

from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Trip:
    """One run of a batch, in the records of the requests whose texts it holds. Times are on the monotonic clock.

    Attributes:
        batch: Name of the batch, unique on this machine while the process lives that formed it.
        n_texts: All its texts, of this request and of others.
        n_tokens: Tokens of all its texts.
        seat: Seat of the worker that computes it.
        begun_s: When that worker got it.
        ended_s: When the run ended, with a result or without; None before.
    """

    batch: str
    n_texts: int
    n_tokens: int
    seat: int
    begun_s: float
    ended_s: float | None = None


@dataclass
class Timing:
    """The times at which the stages of a request began and ended, on the monotonic clock; None if not reached.

    Attributes:
        read_s: The tokenizer got the texts.
        queued_s: The token ids began to wait for a core.
        begun_s: A core got the first of them.
        ended_s: The last text had its result, or the request failed.
        trips: The runs of its texts, in the order in which they began.
    """

    read_s: float | None = None
    queued_s: float | None = None
    begun_s: float | None = None
    ended_s: float | None = None
    trips: list[Trip] = field(default_factory=list)

    @property
    def tokenize_s(self) -> float:
        """Seconds that the tokenizer took."""
        return _between(self.read_s, self.queued_s)

    @property
    def queue_s(self) -> float:
        """Seconds until a core got the first text."""
        return _between(self.queued_s, self.begun_s)

    @property
    def inference_s(self) -> float:
        """Seconds from then on until the last text had its result."""
        return _between(self.begun_s, self.ended_s)

    def begin(self, trip: Trip) -> None:
        """Note that a core has one of the texts."""
        if self.begun_s is None:
            # A core may have got the text for another request, before this one came.
            self.begun_s = max(trip.begun_s, self.queued_s or trip.begun_s)
        if trip not in self.trips:
            self.trips.append(trip)


def _between(first_s: float | None, last_s: float | None) -> float:
    return 0.0 if first_s is None or last_s is None else last_s - first_s
