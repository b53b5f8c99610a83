"""How much work all workers may hold, and when a refused client may send its request again."""

import math
from collections.abc import Callable
from typing import NamedTuple

from embedding_api.engine.scheduling.board import Board
from embedding_api.errors import OverloadedError

# Seconds over which the rate is measured: a shorter time makes the rate random, a longer one outdated.
_MIN_S, _MAX_S = 1.0, 10.0

# The longest that a client is told to stay away: LangChain.js gives up when told more.
_MAX_RETRY_S = 60


class Limits(NamedTuple):
    """What the workers hold together at most.

    Attributes:
        n_tokens: Tokens of waiting texts. A request that comes while fewer wait is accepted whole, however large.
        n_bytes: Bytes of the requests that are not answered.
        tokens_per_s: Tokens that they answer in a second, as measured at the start.
    """

    n_tokens: int
    n_bytes: int
    tokens_per_s: float


UNLIMITED = Limits(n_tokens=2**62, n_bytes=2**62, tokens_per_s=1e6)


class Admission:
    """Admits requests while there is room. Any thread may ask.

    One limit on tokens is checked at two moments, and neither check can replace the other. The server asks `is_full`
    when a request has arrived, so that a refusal costs no thread; all it knows of the tokens is a guess. The engine
    calls `require_room` once the tokens are known: threads read many requests at the same time, all of them admitted
    while nothing waited, and a program without the server has this check alone.

    Workers check without a lock, so requests that come at the same moment may all be admitted.

    Args:
        board: What all workers hold.
        limits: What they may hold.
        clock: Seconds on a monotonic clock.
    """

    def __init__(self, board: Board, limits: Limits, clock: Callable[[], float]) -> None:
        self._columns = board.columns
        self._limits = limits
        self._clock = clock
        # Moments, and the tokens answered by then, over a time in which something always waited: only then does what
        # is answered show what can be.
        self._samples: list[tuple[float, int]] = []

    def require_room(self) -> None:
        """Check that the limit on waiting tokens is not reached.

        Raises:
            OverloadedError: The limit is reached.
        """
        self._sample()
        if sum(self._columns.waiting_tokens) >= self._limits.n_tokens:
            raise self.overloaded()

    def is_full(self) -> bool:
        """Return True if a request that comes now would be refused once all that came before it are read."""
        self._sample()
        return sum(self._columns.waiting_tokens) + sum(self._columns.arriving_tokens) >= self._limits.n_tokens

    def has_room(self, n_bytes: int) -> bool:
        """Return True if requests may take so many bytes more."""
        return sum(self._columns.arriving_bytes) + n_bytes <= self._limits.n_bytes

    def overloaded(self) -> OverloadedError:
        """Return the error, with the seconds in which the waiting tokens are computed at the latest rate."""
        n_tokens = sum(self._columns.waiting_tokens) + sum(self._columns.arriving_tokens)
        wait_s = min(max(1, math.ceil(n_tokens / self._tokens_per_s())), _MAX_RETRY_S)
        full = f"{n_tokens} tokens wait already, and the limit (MAX_QUEUED_TOKENS) is {self._limits.n_tokens}"
        if n_tokens < self._limits.n_tokens:
            n_bytes = sum(self._columns.arriving_bytes)
            full = f"requests without a response hold {n_bytes} bytes, and the limit is {self._limits.n_bytes}"
        return OverloadedError(f"the server is overloaded: {full}; try again in {wait_s} s", retry_after_s=wait_s)

    def _sample(self) -> None:
        now_s, samples = self._clock(), self._samples
        if not sum(self._columns.waiting_tokens):
            self._samples = []
        elif not samples or now_s - samples[-1][0] >= _MIN_S / 2:
            recent = [one for one in samples if now_s - one[0] <= _MAX_S]
            self._samples = [*recent, (now_s, sum(self._columns.answered_tokens))]

    def _tokens_per_s(self) -> float:
        samples = self._samples
        if samples and (duration_s := self._clock() - samples[0][0]) >= _MIN_S:
            return max((sum(self._columns.answered_tokens) - samples[0][1]) / duration_s, 1.0)
        return self._limits.tokens_per_s
