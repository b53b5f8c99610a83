"""What Gunicorn's configuration file does first: it reads the settings, and refuses a start that cannot succeed."""

import contextlib
import os

from embedding_api.errors import StartError
from embedding_api.machine import scratch
from embedding_api.server import arguments, interrupts, listen, reloading
from embedding_api.settings import Settings
from embedding_api.telemetry.metrics import counters


def prepare() -> tuple[Settings, str]:
    """Prepare the master for a start or a reload. A start that cannot succeed ends in one line, before models load.

    Returns:
        The settings, and the folder for the workers' heartbeat files.
    """
    try:
        interrupts.end_start_in_a_line()
        # wsgi.py is imported in this folder, and reads the settings there.
        with contextlib.chdir(arguments.working_folder()):
            # Gunicorn's -w wins over WORKERS. wsgi.py reads the settings again and must see the same number.
            if n_workers := arguments.told("workers"):
                os.environ["WORKERS"] = str(n_workers)
            settings = reloading.read_settings()
        listen.refuse_used_addresses(settings)
        heartbeats = scratch.heartbeat_folder()
        counters.share(settings.max_workers)
    except StartError as error:
        reloading.refuse(error)
    return settings, heartbeats
