"""How texts are put together: pure functions on lengths."""

from collections.abc import Sequence

from embedding_api.engine.cost import Cost


def cut(lengths: Sequence[int], cost: Cost, max_tokens: float) -> list[int]:
    """Cuts texts into the batches that take the least time together.

    A batch is padded to its longest text and every batch has a price of its own, so texts of similar length belong
    together. Of all ways to cut a list sorted by length the cheapest is found from its end: what follows a cut does
    not depend on what was before.

    Args:
        lengths: Tokens of each text, longest first, each at least 1.
        cost: Of a batch.
        max_tokens: The most `rows · longest` of a batch; a longer text travels alone.

    Returns:
        Where each batch ends: batch `k` is `lengths[ends[k-1]:ends[k]]`.
    """
    n_texts = len(lengths)
    start_s, token_s = cost
    least_s = [0.0] * (n_texts + 1)
    best_end = [0] * n_texts
    for begin in range(n_texts - 1, -1, -1):
        longest = lengths[begin]
        most_rows = max(1, min(n_texts - begin, int(max_tokens // longest)))
        row_s = token_s * longest
        least, end_of_least = float("inf"), begin + 1
        spent_s = start_s
        for end in range(begin + 1, begin + most_rows + 1):
            spent_s += row_s
            total_s = spent_s + least_s[end]
            # Of equal ones the later end: fewer batches.
            if total_s <= least:
                least, end_of_least = total_s, end
        least_s[begin], best_end[begin] = least, end_of_least
    ends = []
    end = 0
    while end < n_texts:
        end = best_end[end]
        ends.append(end)
    return ends
