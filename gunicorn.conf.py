"""Gunicorn's configuration. Every value comes from Settings, or has its reason beside it."""

import sys
from pathlib import Path

# With `-c` from another folder, Gunicorn must still find the package beside this file. This folder comes second:
# Gunicorn puts the working folder first.
if (folder := str(Path(__file__).resolve().parent)) not in sys.path:
    sys.path.insert(1, folder)

from embedding_api.server.configuration import prepare
from embedding_api.telemetry import log

settings, worker_tmp_dir = prepare()

# After `prepare`, so that a start with wrong settings fails at once: these imports load most of the service.
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

# The master loads the models once, and the forked workers share that memory.
preload_app = True
worker_class = "embedding_api.server.worker.Worker"
workers = settings.workers
threads = settings.threads
# Connections beyond this number wait in the kernel.
worker_connections = settings.max_connections
# Longer than the 60 s for which nginx keeps idle connections, so that nginx never uses one that Gunicorn is closing.
keepalive = 75
graceful_timeout = settings.graceful_timeout_s
# A limit on heartbeats and not on requests. Heartbeats continue while threads work, and stop if a batch never releases
# the GIL. The worker itself notices other batches that hang, and needs some time to stop before this limit.
timeout = settings.inference_timeout_s + 15
# The service does not see connections in this queue. The queue is short, so that overload becomes visible.
backlog = 256
# No client may set SCRIPT_NAME and PATH_INFO by headers. By default Gunicorn accepts them from this machine.
forwarder_headers = ""
# A master that forks should have few threads, and signals already control it.
control_socket_disable = True
