"""Logs which workers the kernel killed for lack of memory. Gunicorn guesses so for every worker that got SIGKILL."""

import logging

from embedding_api.machine import cgroup

_GUESS = " Perhaps out of memory?"
_CAUSE = (
    " The kernel sent it: the worker was killed for lack of memory{limit}; give the service more memory, serve fewer "
    "or smaller models, or lower MAX_QUEUED_TOKENS or MAX_BODY_BYTES"
)


class MemoryKills(logging.Filter):
    """Replaces Gunicorn's guess by what the kernel counted, whenever a worker got SIGKILL.

    The kernel does not say which process it killed. If it killed another process of the control group since the last
    SIGKILL of a worker, this class takes that for the kill of the worker.
    """

    def __init__(self) -> None:
        super().__init__()
        self._n_seen = cgroup.n_oom_kills()

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the guess in a record of Gunicorn, and keep every record."""
        message = record.getMessage()
        if message.endswith(_GUESS):
            n_before, self._n_seen = self._n_seen, cgroup.n_oom_kills()
            cause = _CAUSE if self._n_seen > n_before else ""
            record.msg, record.args = message.removesuffix(_GUESS) + cause.format(limit=_limit()), ()
        return True


def _limit() -> str:
    limit = cgroup.memory_limit()
    return "" if limit is None else f"; its control group may use {limit // 2**20} MB"
