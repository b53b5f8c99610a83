"""Whether the service takes more work: how much waits in all workers, and how fast it is answered."""

import math
import time
from typing import NamedTuple

from embedding_api.engine.workers.exchange import Exchange
from embedding_api.errors import OverloadedError

# A rate that was measured over less says little; one that reaches back farther, nothing of now.
_MIN_S, _MAX_S = 1.0, 10.0

# The longest that a client is told to stay away: LangChain.js gives up when told more.
_MAX_RETRY_S = 60


class Limits(NamedTuple):
    """What the workers hold together at most.

    Attributes:
        n_tokens: Of texts that wait. Who comes while fewer wait is taken whole, so that no text is too long for it.
        n_bytes: Of the bodies of requests that are not answered yet.
        tokens_per_s: What they answer in a second, as measured at the start.
    """

    n_tokens: int
    n_bytes: int
    tokens_per_s: float


UNLIMITED = Limits(n_tokens=2**62, n_bytes=2**62, tokens_per_s=1e6)


class Admission:
    """Admits what there is room for. Any thread may ask.

    Workers look at the board one by one, so that requests which come at the same moment may all be admitted.

    Args:
        exchange: On which the workers say what waits.
        limits: What they hold together at most.
    """

    def __init__(self, exchange: Exchange, limits: Limits) -> None:
        self._exchange = exchange
        self._limits = limits
        # When something waited, and how many tokens had been answered by then, over a time in which something always
        # waited: only then does what is answered show what can be.
        self._seen: list[tuple[float, int]] = []

    def require_room(self) -> None:
        """Refuses more texts while as many as may be wait.

        Raises:
            OverloadedError: They do.
        """
        self._look()
        if self._exchange.waiting_tokens.sum() >= self._limits.n_tokens:
            raise self.overloaded()

    def is_full(self) -> bool:
        """Whether a request that came now would be refused when all that came before it has been read."""
        self._look()
        n_tokens = self._exchange.waiting_tokens.sum() + self._exchange.arriving_tokens.sum()
        return bool(n_tokens >= self._limits.n_tokens)

    def has_room(self, n_bytes: int) -> bool:
        """Whether the bodies of requests may take so many bytes more."""
        return bool(self._exchange.arriving_bytes.sum() + n_bytes <= self._limits.n_bytes)

    def overloaded(self) -> OverloadedError:
        """The refusal, with the seconds in which what waits is computed at the rate of the last ones."""
        board = self._exchange
        n_tokens = int(board.waiting_tokens.sum() + board.arriving_tokens.sum())
        wait_s = min(max(1, math.ceil(n_tokens / self._tokens_per_s())), _MAX_RETRY_S)
        full = f"{n_tokens} tokens wait already, of {self._limits.n_tokens} that may (MAX_QUEUED_TOKENS)"
        if n_tokens < self._limits.n_tokens:
            n_bytes = int(board.arriving_bytes.sum())
            full = f"requests of {n_bytes} bytes are not answered yet, of {self._limits.n_bytes} that may be held"
        return OverloadedError(f"the server is overloaded: {full}; come again in {wait_s} s", retry_after_s=wait_s)

    def _look(self) -> None:
        now_s, seen = time.monotonic(), self._seen
        if not self._exchange.waiting_tokens.any():
            self._seen = []
        elif not seen or now_s - seen[-1][0] >= _MIN_S / 2:
            recent = [one for one in seen if now_s - one[0] <= _MAX_S]
            self._seen = [*recent, (now_s, int(self._exchange.answered_tokens.sum()))]

    def _tokens_per_s(self) -> float:
        seen = self._seen
        if seen and (taken_s := time.monotonic() - seen[0][0]) >= _MIN_S:
            return max((int(self._exchange.answered_tokens.sum()) - seen[0][1]) / taken_s, 1.0)
        return self._limits.tokens_per_s
