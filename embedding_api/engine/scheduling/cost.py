"""What a batch costs: a few runs of the backend, and a line through them."""

import time
from typing import NamedTuple

import numpy as np

from embedding_api.engine.backends import Backend
from embedding_api.engine.work import Ids

# Rows and tokens of the batches that are timed: one short text, and what fills a core.
_SMALL, _LARGE = (1, 8), (4, 64)

# A batch that takes longer is timed once: with large models a start would take long otherwise.
_SLOW_S = 0.1


class Cost(NamedTuple):
    """What a batch costs: `start_s + token_s · n_computed`; see `Layout.n_computed`.

    Attributes:
        start_s: Seconds that any batch takes: the model's weights are read once.
        token_s: Seconds that each token adds that is computed, what fills the batch up included.
    """

    start_s: float
    token_s: float


# For devices that nobody has measured yet: only the ratio matters, and a device wants many tokens at once.
UNMEASURED = Cost(start_s=1e-3, token_s=1e-6)


def tokens_per_s(cost: Cost, n_tokens: int) -> float:
    """Tokens a second that one core computes in batches of so many."""
    return n_tokens / (cost.start_s + cost.token_s * n_tokens)


def measure(backend: Backend, window: int | None) -> Cost:
    """Times a backend, in the thread that calls.

    The two sizes take turns, as batches in service do: a size that differs from the one before costs OpenVINO 1 to 2
    ms more, which belongs to the start of a batch.

    Args:
        backend: Which.
        window: The most tokens that it reads of a text, if there is a limit.
    """
    small, large = (_batch(n_rows, n_tokens, window) for n_rows, n_tokens in (_SMALL, _LARGE))
    small_s = large_s = float("inf")
    for _ in range(5):
        # The least of several runs, since whatever else the machine does only adds.
        small_s = min(small_s, _taken_s(backend, small))
        large_s = min(large_s, taken_s := _taken_s(backend, large))
        if taken_s > _SLOW_S:
            break
    n_small, n_large = (backend.n_computed(len(batch), len(batch[0]), sum(map(len, batch))) for batch in (small, large))
    token_s = max((large_s - small_s) / max(n_large - n_small, 1), 1e-9)
    return Cost(start_s=max(small_s - token_s * n_small, token_s), token_s=token_s)


def _batch(n_rows: int, n_tokens: int, window: int | None) -> list[Ids]:
    """Rows of so many tokens, or as many as the model reads."""
    return [np.ones(n_tokens if window is None else min(n_tokens, window), dtype=np.int64)] * n_rows


def _taken_s(backend: Backend, batch: list[Ids]) -> float:
    started = time.perf_counter()
    backend.embed(batch, 0)
    return time.perf_counter() - started
