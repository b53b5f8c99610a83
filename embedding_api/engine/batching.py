"""How texts are put together: pure functions on lengths."""

from collections.abc import Sequence

from embedding_api.engine.backends import Backend
from embedding_api.engine.cost import Cost


def cut(lengths: Sequence[int], backend: Backend, cost: Cost, max_tokens: float) -> list[int]:
    """Cuts texts into the batches that take the least time together.

    Every batch has a price of its own, and so has what fills it up, be it each row to the longest text or the whole to
    one of few sizes. Of all ways to cut a list sorted by length the cheapest is found from its end: what follows a cut
    does not depend on what was before.

    Args:
        lengths: Tokens of each text, longest first, each at least 1.
        backend: Says how much is computed for a batch.
        cost: Of a batch.
        max_tokens: The most tokens that are computed for a batch; a longer text travels alone.

    Returns:
        Where each batch ends: batch `k` is `lengths[ends[k-1]:ends[k]]`.
    """
    least_s = [0.0] * (len(lengths) + 1)
    best_end = list(range(1, len(lengths) + 1))
    for begin in range(len(lengths) - 1, -1, -1):
        least = float("inf")
        n_tokens = 0
        for end in range(begin + 1, len(lengths) + 1):
            n_tokens += lengths[end - 1]
            n_computed = backend.n_computed(end - begin, lengths[begin], n_tokens)
            if n_computed > max_tokens and end > begin + 1:
                break
            total_s = cost.start_s + cost.token_s * n_computed + least_s[end]
            # Of equal ones the later end: fewer batches.
            if total_s <= least:
                least, best_end[begin] = total_s, end
        least_s[begin] = least
    ends = []
    end = 0
    while end < len(lengths):
        end = best_end[end]
        ends.append(end)
    return ends
