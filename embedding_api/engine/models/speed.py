"""Measure how long a backend takes for a batch: time two sizes of batch, and draw a straight line through them."""

import time

import numpy as np

from embedding_api.engine.backends import Backend
from embedding_api.engine.scheduling.cost import Cost
from embedding_api.engine.work import Ids

# Texts of a batch, and tokens of each text: two short texts, and a batch that fills a core. A text alone would be
# computed in another way; see `backends/bodies.py`.
_SMALL, _LARGE = (2, 8), (4, 64)

# How often each batch runs: once only if the large batch takes longer than _SLOW_S, so that the start stays short.
_N_RUNS = 5
_SLOW_S = 0.1


def measure(backend: Backend, window: int | None) -> Cost:
    """Return the cost of a batch, as measured in the calling thread.

    The two sizes alternate, as sizes do in service: OpenVINO takes 1 to 2 ms longer for a batch whose size differs from
    the size before, and that time belongs to `Cost.start_s`.

    Args:
        backend: The backend, loaded and warm.
        window: The most tokens that the model reads of a text; None for no limit.
    """
    small, large = (_batch(n_texts, n_tokens, window) for n_texts, n_tokens in (_SMALL, _LARGE))
    small_s = large_s = float("inf")
    for _ in range(_N_RUNS):
        # The shortest of several runs: other work on the machine can only add time.
        small_s = min(small_s, _elapsed_s(backend, small))
        large_s = min(large_s, elapsed_s := _elapsed_s(backend, large))
        if elapsed_s > _SLOW_S:
            break
    n_small, n_large = (backend.n_computed(len(batch), len(batch[0]), sum(map(len, batch))) for batch in (small, large))
    token_s = max((large_s - small_s) / max(n_large - n_small, 1), 1e-9)
    return Cost(start_s=max(small_s - token_s * n_small, token_s), token_s=token_s)


def _batch(n_texts: int, n_tokens: int, window: int | None) -> list[Ids]:
    """Return texts of `n_tokens` tokens each, or of the window's tokens if that is less; int64, (n_tokens,)."""
    return [np.ones(n_tokens if window is None else min(n_tokens, window), dtype=np.int64)] * n_texts


def _elapsed_s(backend: Backend, batch: list[Ids]) -> float:
    started = time.perf_counter()
    backend.compute(batch, 0)
    return time.perf_counter() - started
