"""How texts are put together: pure functions on lengths."""

from collections.abc import Sequence

from embedding_api.engine.backends import Backend
from embedding_api.engine.scheduling.cost import Cost


def company(seed: int, lengths: Sequence[int], backend: Backend, cost: Cost, max_tokens: float) -> list[int]:
    """Whom to take along with the text whose turn it is, so that the batch does the most in its time.

    Every batch has a price of its own, and so has what fills it up, be it each row to the longest text or the whole to
    one of few sizes. Texts are tried from the nearest in length to the farthest, and the number of them is kept with
    which most tokens a second are computed.

    Args:
        seed: Tokens of the text whose turn it is.
        lengths: Tokens of each of the others, the preferred first.
        backend: Says how much is computed for a batch.
        cost: Of a batch.
        max_tokens: The most tokens that are computed for a batch; a longer text travels alone.

    Returns:
        Positions in `lengths`.
    """
    chosen: list[int] = []
    n_best = 0
    longest = n_tokens = seed
    best_rate = seed / _seconds(backend, cost, 1, seed, seed)
    for position in sorted(range(len(lengths)), key=lambda position: abs(lengths[position] - seed)):
        length = lengths[position]
        n_texts = len(chosen) + 2
        if n_tokens >= max_tokens:
            break
        if backend.n_computed(n_texts, max(longest, length), n_tokens + length) > max_tokens:
            continue
        chosen.append(position)
        longest = max(longest, length)
        n_tokens += length
        rate = n_tokens / _seconds(backend, cost, n_texts, longest, n_tokens)
        if rate >= best_rate:
            best_rate, n_best = rate, len(chosen)
    return chosen[:n_best]


def _seconds(backend: Backend, cost: Cost, n_texts: int, longest: int, n_tokens: int) -> float:
    return cost.start_s + cost.token_s * backend.n_computed(n_texts, longest, n_tokens)
