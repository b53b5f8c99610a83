"""How Gunicorn runs the service. Every value comes from Settings, or has its reason beside it."""

import sys
from pathlib import Path

# Who names this file from elsewhere serves what lies beside it; behind the working folder, which Gunicorn puts first.
if (folder := str(Path(__file__).resolve().parent)) not in sys.path:
    sys.path.insert(1, folder)

from embedding_api.server.configuration import prepare
from embedding_api.telemetry import log

settings, worker_tmp_dir = prepare()

# Behind `prepare`, which says in a moment what cannot be: these import most of the service.
from embedding_api.server.hooks import (
    child_exit,
    nworkers_changed,
    on_reload,
    post_fork,
    post_worker_init,
    pre_fork,
    when_ready,
    worker_exit,
)

bind = settings.bind
wsgi_app = "wsgi:app"
logconfig_dict = log.configuration(settings)

# Models are loaded once, in the master, and forked workers share their memory.
preload_app = True
worker_class = "embedding_api.server.worker.Worker"
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
