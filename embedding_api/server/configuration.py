"""What Gunicorn's configuration file does before it names values: settings read, and what cannot be refused."""

import contextlib
import os

from embedding_api.errors import StartError
from embedding_api.machine import scratch
from embedding_api.server import arguments, interrupts, listen, reloading
from embedding_api.settings import Settings
from embedding_api.telemetry.metrics import counters


def prepare() -> tuple[Settings, str]:
    """Prepare the master for a start or a reload; what cannot be ends it in one line, before models load.

    Returns:
        The settings, and the folder of workers' heartbeat files.
    """
    try:
        interrupts.end_start_in_a_line()
        # From where wsgi.py reads them, which is imported there.
        with contextlib.chdir(arguments.working_folder()):
            # wsgi.py reads the settings, too, and both must know how many workers Gunicorn starts.
            if n_workers := arguments.told("workers"):
                os.environ["WORKERS"] = str(n_workers)
            settings = reloading.read_settings()
        listen.refuse_used_addresses(settings)
        heartbeats = scratch.heartbeat_folder()
        counters.share(settings.max_workers)
    except StartError as error:
        reloading.refuse(error)
    return settings, heartbeats
