"""How Gunicorn runs the service. Every value comes from Settings, or has its reason beside it."""

import contextlib
import os
import sys
from pathlib import Path

# Who names this file from elsewhere serves what lies beside it; behind the working folder, which Gunicorn puts first.
if (folder := str(Path(__file__).resolve().parent)) not in sys.path:
    sys.path.insert(1, folder)

from embedding_api import gunicorn_arguments, interrupts, listen, log, reloading, scratch, slots
from embedding_api.errors import StartError

try:
    interrupts.end_start_in_a_line()
    # As wsgi.py reads them, which is imported there.
    with contextlib.chdir(gunicorn_arguments.working_folder()):
        settings = reloading.read_settings()
    listen.refuse_used_addresses(settings)
    worker_tmp_dir = scratch.heartbeat_folder()
    slots.share(settings.max_workers)
except StartError as error:
    reloading.refuse(error)

# What it counts is shared from `slots.share` on.
from embedding_api import metrics

bind = settings.bind
wsgi_app = "wsgi:app"
logconfig_dict = log.configuration(settings)

# Models are loaded once, in the master, and forked workers share their memory.
preload_app = True
worker_class = "embedding_api.gunicorn_worker.Worker"
workers = settings.workers
threads = settings.threads
# Connections that are idle, slow or wait for their turn cost no thread. Beyond these, they wait in the kernel.
worker_connections = settings.threads + 1000
# Longer than the 60 s for which nginx keeps its upstream connections, so that it never picks one being closed.
keepalive = 75
graceful_timeout = settings.graceful_timeout_s
# A heartbeat, not a limit on requests: it goes on while threads work, and stops if a batch never lets go of Python's
# lock. A batch that hangs otherwise is for the worker itself to notice, and to have some time for its end.
timeout = settings.inference_timeout_s + 15
# Requests waiting here are seen by nobody; a short queue makes overload show.
backlog = 256
# No client may say where the application is mounted; by default one on this machine may.
forwarder_headers = ""
# One thread less in a master that forks, and no second way to command it.
control_socket_disable = True


def when_ready(server):
    """Says where the service is, and how to try it; and prepares for signals that Gunicorn alone would take amiss."""
    # Its imports are most of the service, and the port is tried before they are waited for.
    from embedding_api import gunicorn_worker

    gunicorn_worker.tell_workers_of_sigterm(server)
    reloading.guard(server, _running(server))
    listen.announce(server, _running(server))


def on_reload(server):
    """Says what is new: where the service is, and what of the settings it is not."""
    listen.announce(server, _running(server))
    reloading.say_what_waits(_running(server), settings)


def nworkers_changed(server, new_value, old_value):
    """Counts how many workers there should be, at the start and after SIGTTIN and SIGTTOU."""
    metrics.WORKERS_WANTED.set(new_value)


def pre_fork(server, worker):
    """Gives the worker its place among those that exchange batches, and among those that count."""
    worker.seat, worker.slot = _engine(worker).take_seat(), slots.take()
    metrics.WORKERS.set(slots.n_taken())


def post_fork(server, worker):
    """Counts in the worker's own place from now on.

    Lets the kernel, short of memory, kill a worker rather than the master, whose end would be the service's.

    The master maps the models' files and so looks larger. The number is added to what a process uses, in thousandths of
    the memory there is; anybody may raise their own.
    """
    slots.become(worker.slot)
    with contextlib.suppress(OSError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(1000, int(score.read_text()) + 500)))


def post_worker_init(worker):
    """Starts the engine and traces after the fork; a worker that cannot do so stops the service."""
    _engine(worker).start(worker.seat)
    if (tracing := _parts(worker).tracing) is not None:
        tracing.start()


def child_exit(server, worker):
    """Lets the other workers know that one is gone, so that they compute again what it had of theirs; and counts it."""
    if worker.seat is not None:
        worker.seat.leave()
    slots.leave(worker.slot)
    metrics.WORKERS.set(slots.n_taken())
    metrics.RESTARTS.inc()


def worker_exit(server, worker):
    """Ends the engine with its worker; Gunicorn's master may call this too, and its engine is the next workers'."""
    if worker.pid == os.getpid():
        _engine(worker).close()
        if (tracing := _parts(worker).tracing) is not None:
            tracing.close()


def _parts(worker):
    return worker.app.wsgi().extensions["embedding_api"]


def _running(server):
    return _parts(server).settings


def _engine(worker):
    return _parts(worker).engine
