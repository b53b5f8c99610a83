"""Where a request's time went: when what happened to it, and the batches that its texts travelled in."""

from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Trip:
    """One batch under way, as the requests whose texts it holds remember it. Times are on the monotonic clock.

    Attributes:
        batch: Which batch; no other on this machine has the name while the process lives that formed it.
        n_texts: In it, whoever wants them.
        n_tokens: Of all of them.
        seat: Of the worker that computed it.
        begun_s: When a core had it.
        ended_s: When its vectors were there, or it was known that they would not be; None before.
    """

    batch: str
    n_texts: int
    n_tokens: int
    seat: int
    begun_s: float
    ended_s: float | None = None


@dataclass
class Timing:
    """When what happened to a request, on the monotonic clock; None for what it has not come to.

    Attributes:
        read_s: When the tokenizer got its texts.
        queued_s: When their token ids were there, and waited for a core.
        begun_s: When a core had the first of them.
        ended_s: When the last of them had its vector, or the request failed.
        trips: Of its texts, in the order in which they began.
    """

    read_s: float | None = None
    queued_s: float | None = None
    begun_s: float | None = None
    ended_s: float | None = None
    trips: list[Trip] = field(default_factory=list)

    @property
    def tokenize_s(self) -> float:
        """Seconds from the texts to their token ids."""
        return _between(self.read_s, self.queued_s)

    @property
    def queue_s(self) -> float:
        """Seconds until a core took the first of them."""
        return _between(self.queued_s, self.begun_s)

    @property
    def inference_s(self) -> float:
        """Seconds from then on until the last of them had its vector."""
        return _between(self.begun_s, self.ended_s)

    def begin(self, trip: Trip) -> None:
        """A core has one of its texts."""
        if self.begun_s is None:
            # A text that another request wanted first may be under way already.
            self.begun_s = max(trip.begun_s, self.queued_s or trip.begun_s)
        if trip not in self.trips:
            self.trips.append(trip)


def _between(first_s: float | None, last_s: float | None) -> float:
    return 0.0 if first_s is None or last_s is None else last_s - first_s
