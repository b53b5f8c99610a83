"""How texts are put together: pure functions on lengths."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.intp]


def cut(lengths: Sequence[int], max_batch_tokens: int) -> list[Rows]:
    """Cuts texts into batches of similar length.

    A batch is padded to its longest text, so its cost is `rows · longest`. Sorted by length, little of that is
    padding.

    Args:
        lengths: Tokens of each text, each at least 1.
        max_batch_tokens: The most `rows · longest` of a batch; a longer text travels alone.

    Returns:
        For each batch the positions of its texts, longest first; together every position once.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches = []
    start = 0
    while start < len(order):
        n_rows = max(1, max_batch_tokens // lengths[order[start]])
        batches.append(order[start : start + n_rows])
        start += n_rows
    return batches
