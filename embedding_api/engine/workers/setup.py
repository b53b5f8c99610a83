"""The setup that all workers of a server share, made before the fork."""

from collections.abc import Sequence
from dataclasses import dataclass

from embedding_api.engine.backends import Backend
from embedding_api.engine.scheduling.admission import UNLIMITED, Limits
from embedding_api.engine.scheduling.cost import Cost
from embedding_api.engine.workers.exchange import Exchange


@dataclass(frozen=True)
class Setup:
    """The setup of all workers.

    Attributes:
        names: The name of each backend's model, in the registry's order.
        backends: The backends, in the same order.
        costs: The cost of a batch for each backend.
        exchange: The exchange over which workers send batches; None if each computes alone.
        n_computing: The number of workers that compute at the same time, a batch each. Others send to them.
        n_threads: Threads with which each of them computes a batch.
        solo_tokens: For each backend the fewest tokens that are worth the way to the worker that computes on all cores
            what waits alone; empty if there is no such worker.
        n_solo_threads: Threads with which that worker computes.
        limits: The work that all workers accept together.
        inference_timeout_s: Seconds after which a batch counts as stuck.
    """

    names: Sequence[str]
    backends: Sequence[Backend]
    costs: Sequence[Cost]
    exchange: Exchange | None = None
    n_computing: int = 1
    n_threads: int = 1
    solo_tokens: Sequence[float] = ()
    n_solo_threads: int = 1
    limits: Limits = UNLIMITED
    inference_timeout_s: float = 30.0
