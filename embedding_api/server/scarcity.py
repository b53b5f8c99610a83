"""Processes, threads and open files that the system refuses.

A start without them ends in one line; a running service waits.
"""

import contextlib
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from gunicorn.errors import HaltServer

from embedding_api.errors import ScarcityError, StartError
from embedding_api.server import flags
from embedding_api.settings import Settings

logger = logging.getLogger(__name__)

# The master is ending, because the system refuses something.
_is_halting = False
# Seconds until a worker that could not start is tried again.
_RETRY_S = 1.0


def raise_open_files(settings: Settings) -> None:
    """Raise this process's limit on open files to what a worker can use, as far as the system allows.

    Raises:
        StartError: The system allows fewer than the service needs.
    """
    # For each seat two sockets of the exchange; heartbeat files of workers, old and new ones during a reload; a file of
    # each model; and 32 for the rest, with some connections: a worker at rest has 12 of them.
    n_needed = 2 * settings.max_workers + 2 * settings.workers + len(settings.supported_models) + 32
    n_used = n_needed + settings.max_connections
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_now, n_most = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in limits)
    if n_most < n_needed:
        raise StartError(
            f"the system allows {n_most} open files, and WORKERS={settings.workers} needs at least {n_needed}; raise "
            "the limit (ulimit -n, nofile of a container, LimitNOFILE), or lower WORKERS"
        )
    if n_now < n_used:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(n_used, n_most), limits[1]))


@contextlib.contextmanager
def ending_worker() -> Iterator[None]:
    """End a worker that cannot start. The master ends a start for it, and tries again later in a running service."""
    try:
        yield
    except StartError as error:
        if flags.HAS_SERVED:
            logger.error("a worker cannot start, and is tried again: %s", error.message)  # noqa: TRY400 - in one line
            time.sleep(_RETRY_S)
        else:
            flags.LACKS_THREADS.set()
        raise SystemExit(1) from error


def halt_without_threads() -> None:
    """End a start whose workers cannot have their threads. Call it in the master when a worker has ended.

    Raises:
        HaltServer: No worker has ever served, and one lacked threads.
    """
    if flags.LACKS_THREADS and not flags.HAS_SERVED:
        _halt("the threads that a worker needs")


def _halt(lacking: str) -> None:
    global _is_halting
    # Once: while the master ends, its workers do, and it takes note of each.
    if not _is_halting:
        _is_halting = True
        raise HaltServer(ScarcityError(lacking).line, 1)


def guard_forks(arbiter: Any, give_up_worker: Callable[[], None]) -> None:
    """Let a refused fork end a start in one line, and nothing later: Gunicorn's master would end with a traceback.

    Args:
        arbiter: Gunicorn's, before it starts workers.
        give_up_worker: Called when the newest worker got no process.
    """
    spawn_worker, master = arbiter.spawn_worker, os.getpid()

    def spawn_or_wait() -> Any:
        try:
            return spawn_worker()
        except OSError as error:
            if os.getpid() != master:
                raise
            give_up_worker()
            lacking = f"a process for a worker ({error.strerror})"
            if not flags.HAS_SERVED:
                _halt(lacking)
                return None
            logger.error("a worker cannot start, and is tried again: %s", ScarcityError(lacking).message)  # noqa: TRY400 - in one line
            time.sleep(_RETRY_S)
        return None

    arbiter.spawn_worker = spawn_or_wait
