"""Logs which workers the kernel killed for lack of memory. Gunicorn logs of them only that they got SIGKILL."""

import logging

from embedding_api.machine import cgroup

logger = logging.getLogger(__name__)


class MemoryKills:
    """Compares the kernel's count of out-of-memory kills in this control group whenever a worker has ended.

    The kernel does not say which process it killed. If it killed another process of the group since the worker before
    ended, this class takes that for the kill of the worker.
    """

    def __init__(self) -> None:
        self._n_seen = cgroup.n_oom_kills()

    def note_end(self, pid: int, *, was_killed: bool) -> None:
        """Log an error if the kernel killed this worker for lack of memory.

        Args:
            pid: Process id of the worker that has ended.
            was_killed: False if the worker reached its own end, so that a kill cannot have been its.
        """
        n_before, self._n_seen = self._n_seen, cgroup.n_oom_kills()
        if was_killed and self._n_seen > n_before:
            limit = cgroup.memory_limit()
            bound = "" if limit is None else f"; its control group may use {limit // 2**20} MB"
            logger.error(
                "worker %d was killed for lack of memory, by SIGKILL from the kernel%s; give the service more memory, "
                "serve fewer or smaller models, or lower MAX_QUEUED_TOKENS or MAX_BODY_BYTES",
                pid,
                bound,
            )
