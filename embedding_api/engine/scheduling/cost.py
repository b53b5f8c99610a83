"""The cost of a batch, and the choice of its texts. Pure functions on lengths.

The seconds of a batch are a straight line over the tokens that are computed; `models/speed.py` measures it.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Cost(NamedTuple):
    """The seconds of one batch on one core: `start_s + token_s * n_computed`; see `Backend.n_computed`.

    Attributes:
        start_s: Seconds that every batch takes, however small: the core reads the model's weights once.
        token_s: Seconds that each computed token adds. Padding is computed too.
    """

    start_s: float
    token_s: float


# The cost on a GPU, which cannot be measured before the fork. Only the ratio matters: large batches suit a GPU.
UNMEASURED = Cost(start_s=1e-3, token_s=1e-6)


def tokens_per_s(cost: Cost, n_tokens: int) -> float:
    """Return the tokens per second of one core that computes batches of `n_tokens` tokens."""
    return n_tokens / (cost.start_s + cost.token_s * n_tokens)


class Sizing(Protocol):
    """How many tokens a backend computes for a batch."""

    @property
    def target_batch_tokens(self) -> int:
        """The size of a batch that suits the backend best, in computed tokens."""

    def n_computed(self, n_texts: int, longest: int, n_tokens: int) -> int:
        """See `Backend.n_computed`."""


def seconds(sizing: Sizing, cost: Cost, n_texts: int, longest: int, n_tokens: int) -> float:
    """Return the seconds of a batch; for its size see `Sizing.n_computed`."""
    return cost.start_s + cost.token_s * sizing.n_computed(n_texts, longest, n_tokens)


def choose_companions(seed: int, lengths: Sequence[int], sizing: Sizing, cost: Cost, max_tokens: float) -> list[int]:
    """Choose the texts that join `seed` so that the batch has the highest tokens per second.

    Starting a batch takes time, and padding does, too. Where texts are padded to the longest, those nearest in length
    are tried first; elsewhere the preferred ones. Of all batches tried, that with the most tokens per second is chosen.

    Args:
        seed: Tokens of the text that is due next.
        lengths: Tokens of each other text, the preferred first.
        sizing: How many tokens are computed for a batch.
        cost: What they cost.
        max_tokens: The most tokens that are computed for a batch; a longer text is computed alone.

    Returns:
        Indices in `lengths`.
    """
    chosen: list[int] = []
    n_best = 0
    longest = n_tokens = seed
    best_rate = seed / seconds(sizing, cost, 1, seed, seed)
    order: Sequence[int] = range(len(lengths))
    if _pads(sizing):
        order = sorted(order, key=lambda index: abs(lengths[index] - seed))
    for index in order:
        length = lengths[index]
        n_texts = len(chosen) + 2
        if n_tokens >= max_tokens:
            break
        if sizing.n_computed(n_texts, max(longest, length), n_tokens + length) > max_tokens:
            continue
        chosen.append(index)
        longest = max(longest, length)
        n_tokens += length
        rate = n_tokens / seconds(sizing, cost, n_texts, longest, n_tokens)
        if rate >= best_rate:
            best_rate, n_best = rate, len(chosen)
    return chosen[:n_best]


def _pads(sizing: Sizing) -> bool:
    """Return True if texts are padded to the longest of their batch."""
    far = 2 * sizing.target_batch_tokens
    return sizing.n_computed(2, far, far) > sizing.n_computed(2, far // 2, far)
