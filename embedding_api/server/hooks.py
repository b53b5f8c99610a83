"""Gunicorn's hooks: what happens when it starts, reloads, forks and loses a worker. `gunicorn.conf.py` names them."""

import contextlib
import itertools
import logging
import os
from pathlib import Path
from typing import Any

from gunicorn.arbiter import Arbiter

from embedding_api import web
from embedding_api.server import listen, reloading, scarcity
from embedding_api.server.memory_kills import MemoryKills
from embedding_api.server.worker import Worker, tell_workers_of_sigterm
from embedding_api.service import Service, service_of
from embedding_api.telemetry import metrics
from embedding_api.telemetry.metrics import counters

logger = logging.getLogger(__name__)


def when_ready(server: Arbiter) -> None:
    """Prepare the master for signals and for a lack of processes, and log where the service is and how to try it."""
    logging.getLogger("gunicorn.error").addFilter(MemoryKills())
    tell_workers_of_sigterm(server)
    scarcity.guard_forks(server, lambda: _free_places(server, server.newest_worker))
    settings = _service(server).settings
    reloading.guard(server, settings)
    reloading.guard_number_of_workers(server, settings)
    listen.announce(server, settings)


def on_reload(server: Arbiter) -> None:
    """Log a new address of the service, and settings that need a restart."""
    listen.announce(server, _service(server).settings)
    reloading.say_what_waits(_service(server).settings)


def nworkers_changed(server: Arbiter, new_value: int, old_value: int | None) -> None:  # noqa: ARG001 - Gunicorn's
    """Count how many workers there should be, at the start and after SIGTTIN and SIGTTOU."""
    metrics.WORKERS_WANTED.set(new_value)


def pre_fork(server: Arbiter, worker: Worker) -> None:
    """Give the worker its seat on the exchange of batches, and its slot for counting."""
    server.newest_worker = worker
    exchange, others = _service(worker).engine.setup.exchange, server.WORKERS.values()
    worker.seat = None if exchange is None else exchange.board.take_seat()
    taken = {other.slot for other in others}
    worker.slot = next(slot for slot in itertools.count(1) if slot not in taken)
    if worker.slot > _service(server).settings.max_workers:
        logger.warning("all seats are taken; worker %d computes alone, and GET /metrics leaves it out", worker.age)
    metrics.WORKERS.set(len(others) + 1)


def post_fork(server: Arbiter, worker: Worker) -> None:  # noqa: ARG001 - Gunicorn's
    """Let the worker count in its own slot, and let the kernel kill it rather than the master if memory runs out.

    The master maps the files of the models, and so seems to use more; without it the service would end. The kernel adds
    the score, in thousandths of all memory, to what a process uses. Any process may raise its own score.
    """
    counters.become(worker.slot)
    with contextlib.suppress(OSError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(1000, int(score.read_text()) + 500)))


def post_worker_init(worker: Worker) -> None:
    """Start the engine and the sending of traces, after the fork. A worker that cannot do so stops the service."""
    service = _service(worker)
    with scarcity.ending_worker():
        # Before other threads count.
        with counters.unseen():
            web.rehearse(worker.wsgi)
        service.engine.start(worker.seat)
        if service.tracing is not None:
            service.tracing.start()


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Free the places of a worker that has ended, so that the others compute again what they had sent to it."""
    _free_places(server, worker)
    metrics.RESTARTS.inc()
    scarcity.halt_without_threads()


def _free_places(server: Arbiter, worker: Worker) -> None:
    exchange = _service(worker).engine.setup.exchange
    if exchange is not None and worker.seat is not None:
        exchange.leave(worker.seat)
    counters.leave(worker.slot)
    metrics.WORKERS.set(len(server.WORKERS))


def worker_exit(server: Arbiter, worker: Worker) -> None:  # noqa: ARG001 - Gunicorn's
    """End the engine of a worker. Gunicorn's master may call this, too; its engine stays for later workers."""
    if worker.pid == os.getpid():
        service = _service(worker)
        service.engine.close()
        if service.tracing is not None:
            service.tracing.close()


def _service(owner: Any) -> Service:
    """Return the service that a server or a worker runs."""
    return service_of(owner.app.wsgi())
