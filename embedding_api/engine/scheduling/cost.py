"""How long a batch takes: a straight line over the tokens that are computed. Pure; `models/speed.py` measures it."""

from typing import NamedTuple


class Cost(NamedTuple):
    """The seconds of one batch on one core: `start_s + token_s * n_computed`; see `Sizing.n_computed`.

    Attributes:
        start_s: Seconds that every batch takes, however small: the core reads the model's weights once.
        token_s: Seconds that each computed token adds. Padding is computed too.
    """

    start_s: float
    token_s: float


# The cost on a device, which cannot be measured before the fork. Only the ratio matters: a device wants large batches.
UNMEASURED = Cost(start_s=1e-3, token_s=1e-6)


def tokens_per_s(cost: Cost, n_tokens: int) -> float:
    """Return the tokens per second of one core that computes batches of `n_tokens` tokens."""
    return n_tokens / (cost.start_s + cost.token_s * n_tokens)
