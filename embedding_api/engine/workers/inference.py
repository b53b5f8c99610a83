"""Inference: the backends of this worker, prepared and used in one thread."""

import time
from collections.abc import Sequence

import numpy as np

from embedding_api.engine.backends import Backend
from embedding_api.engine.work import Result, Work
from embedding_api.telemetry import metrics


class Inference:
    """Computes one batch at a time. Other threads may use only `stuck_for_s` and `error`.

    Args:
        names: The name of each backend's model, in the registry's order.
        backends: The backends, in the same order.

    Attributes:
        error: The reason why a backend cannot compute here; None if all can.
    """

    def __init__(self, names: Sequence[str], backends: Sequence[Backend]) -> None:
        self.error: Exception | None = None
        self._names = names
        self._backends = backends
        self._is_prepared = False
        self._busy_since_s: float | None = None

    def prepare(self) -> None:
        """Make this thread ready to compute, once; see `error`."""
        if self._is_prepared or self.error is not None:
            return
        try:
            for backend in self._backends:
                backend.prepare()
            self._is_prepared = True
        except Exception as error:  # noqa: BLE001 - `start` raises it, or the health check reports it
            self.error = error

    def compute(self, work: Work) -> Result:
        """Return the result of a batch.

        Raises:
            Exception: What the backend raises.
        """
        self.prepare()
        if self.error is not None:
            raise self.error
        backend = self._backends[work.lane.backend]
        began_s = self._busy_since_s = time.monotonic()
        try:
            with metrics.BATCHES_IN_PROGRESS.track_inprogress():
                result = backend.compute(work.inputs, work.lane.n_prompt_tokens)
            self._count(work, time.monotonic() - began_s)
        except Exception:
            metrics.BATCH_FAILURES.labels(self._names[work.lane.backend]).inc()
            raise
        finally:
            self._busy_since_s = None
        values = result.values
        if values.shape != (len(work.inputs), backend.dim) or values.dtype != np.float32:
            raise RuntimeError(f"the backend gave {values.dtype} {values.shape}; this is a bug")
        return result

    def stuck_for_s(self) -> float:
        """Return the seconds since the batch that it computes began; 0 while there is none."""
        return 0.0 if (busy_since_s := self._busy_since_s) is None else time.monotonic() - busy_since_s

    def _count(self, work: Work, duration_s: float) -> None:
        name, lengths = self._names[work.lane.backend], [len(ids) for ids in work.inputs]
        n_tokens = sum(lengths)
        n_computed = self._backends[work.lane.backend].n_computed(len(lengths), max(lengths), n_tokens)
        metrics.BATCH_TEXTS.labels(name).observe(len(lengths))
        metrics.BATCH_SECONDS.labels(name).observe(duration_s)
        metrics.COMPUTED_TOKENS.labels(name).inc(n_computed)
        metrics.PADDING_TOKENS.labels(name).inc(n_computed - n_tokens)
