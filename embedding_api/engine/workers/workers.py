"""What all workers of a server have in common, made before the fork."""

from collections.abc import Sequence
from dataclasses import dataclass

from embedding_api.engine.backends import Backend
from embedding_api.engine.scheduling.admission import UNLIMITED, Limits
from embedding_api.engine.scheduling.cost import Cost
from embedding_api.engine.workers.mailbox import Exchange


@dataclass(frozen=True)
class Workers:
    """The workers of a server.

    Attributes:
        names: Of the model of each backend, in the registry's order.
        backends: In the same order.
        costs: What a batch costs, for each of them.
        exchange: Over which they send each other batches; None if each computes alone.
        n_computing: How many compute at the same time; the younger ones send everything to the older.
        limits: What they accept together.
        inference_timeout_s: Seconds after which a batch counts as stuck.
    """

    names: Sequence[str]
    backends: Sequence[Backend]
    costs: Sequence[Cost]
    exchange: Exchange | None = None
    n_computing: int = 1
    limits: Limits = UNLIMITED
    inference_timeout_s: float = 30.0
