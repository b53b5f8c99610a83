"""Inference: the backends of this worker, prepared and used in one thread at a time."""

import time
from collections.abc import Sequence

import numpy as np

from embedding_api.engine.work import Ids, Lane, Result, Work
from embedding_api.engine.workers.setup import Setup
from embedding_api.telemetry import metrics


class Inference:
    """Computes one batch at a time. Other threads may use only `stuck_for_s` and `error`.

    Args:
        setup: The setup that all workers share.

    Attributes:
        error: The reason why a backend cannot compute here; None if all can.
        max_batches_per_thread: See `Backend`.
    """

    def __init__(self, setup: Setup) -> None:
        self.error: Exception | None = None
        self._names, self._backends = setup.names, setup.backends
        self._n_threads, self._n_solo_threads = setup.n_threads, setup.n_solo_threads
        self.max_batches_per_thread = min(backend.max_batches_per_thread for backend in setup.backends)
        self._is_prepared = False
        self._busy_since_s: float | None = None

    def prepare(self, *, on_all_cores: bool) -> None:
        """Make this thread ready to compute, once; see `error`.

        Args:
            on_all_cores: True in the worker that computes on all cores.
        """
        if self._is_prepared or self.error is not None:
            return
        try:
            for backend in self._backends:
                backend.prepare(self._n_solo_threads if on_all_cores else self._n_threads)
            self._is_prepared = True
        except Exception as error:  # noqa: BLE001 - `start` raises it, or the health check reports it
            self.error = error

    def compute(self, works: Sequence[Work], *, on_all_cores: bool) -> Result:
        """Return the result of batches that are computed as one, in their order.

        Args:
            works: Batches of one lane.
            on_all_cores: See `prepare`.

        Raises:
            Exception: What the backend raises.
        """
        self.prepare(on_all_cores=on_all_cores)
        if self.error is not None:
            raise self.error
        lane = works[0].lane
        inputs = [ids for work in works for ids in work.inputs]
        backend = self._backends[lane.backend]
        began_s = self._busy_since_s = time.monotonic()
        try:
            backend.use_threads(self._n_solo_threads if on_all_cores else self._n_threads)
            with metrics.BATCHES_IN_PROGRESS.track_inprogress():
                result = backend.compute(inputs, lane.n_prompt_tokens)
            self._count(lane, inputs, time.monotonic() - began_s)
        except Exception:
            metrics.BATCH_FAILURES.labels(self._names[lane.backend]).inc()
            raise
        finally:
            self._busy_since_s = None
        values = result.values
        if values.shape != (len(inputs), backend.dim) or values.dtype != np.float32:
            raise RuntimeError(f"the backend gave {values.dtype} {values.shape}; this is a bug")
        return result

    def stuck_for_s(self) -> float:
        """Return the seconds since the batch that it computes began; 0 while there is none."""
        return 0.0 if (busy_since_s := self._busy_since_s) is None else time.monotonic() - busy_since_s

    def _count(self, lane: Lane, inputs: Sequence[Ids], duration_s: float) -> None:
        name, lengths = self._names[lane.backend], list(map(len, inputs))
        n_tokens = sum(lengths)
        n_computed = self._backends[lane.backend].n_computed(len(lengths), max(lengths), n_tokens)
        metrics.BATCH_TEXTS.labels(name).observe(len(lengths))
        metrics.BATCH_SECONDS.labels(name).observe(duration_s)
        metrics.COMPUTED_TOKENS.labels(name).inc(n_computed)
        metrics.PADDING_TOKENS.labels(name).inc(n_computed - n_tokens)
