"""What a batch costs: a few runs of the backend, and a line through them."""

import time
from typing import NamedTuple

import numpy as np

from embedding_api.engine.backends import Backend

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


def measure(backend: Backend) -> Cost:
    """Times a backend, in the thread that calls.

    The two sizes take turns, as batches in service do: a size that differs from the one before costs OpenVINO 1 to 2
    ms more, which belongs to the start of a batch.
    """
    fastest_s = {_SMALL: float("inf"), _LARGE: float("inf")}
    for _ in range(5):
        for n_rows, n_tokens in fastest_s:
            batch = [np.ones(n_tokens, dtype=np.int64)] * n_rows
            started = time.perf_counter()
            backend.embed(batch, 0)
            taken_s = time.perf_counter() - started
            # The least of several runs, since whatever else the machine does only adds.
            fastest_s[n_rows, n_tokens] = min(fastest_s[n_rows, n_tokens], taken_s)
        if taken_s > _SLOW_S:
            break
    n_small, n_large = (backend.n_computed(n_rows, n_tokens, n_rows * n_tokens) for n_rows, n_tokens in fastest_s)
    token_s = max((fastest_s[_LARGE] - fastest_s[_SMALL]) / (n_large - n_small), 1e-9)
    return Cost(start_s=max(fastest_s[_SMALL] - token_s * n_small, token_s), token_s=token_s)
