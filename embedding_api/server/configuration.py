"""What Gunicorn's configuration file does first: it reads the settings, and refuses a start that cannot succeed."""

import contextlib
import os
import signal
from pathlib import Path
from types import FrameType

from embedding_api.errors import SettingsError, StartError
from embedding_api.machine import scratch
from embedding_api.server import arguments, listen, reloading, scarcity
from embedding_api.settings import Settings
from embedding_api.telemetry import log
from embedding_api.telemetry.metrics import counters


def prepare() -> tuple[Settings, str]:
    """Prepare the master for a start or a reload. A start that cannot succeed ends in one line, before models load.

    Returns:
        The settings, and the folder for the workers' heartbeat files.
    """
    _end_start_in_a_line()
    # wsgi.py is imported in this folder, and reads the settings there. The .env in it says how that line is logged.
    with contextlib.chdir(_working_folder()):
        try:
            # Gunicorn's -w wins over WORKERS. wsgi.py reads the settings again and must see the same number.
            if n_workers := arguments.option("workers"):
                os.environ["WORKERS"] = str(n_workers)
            settings = reloading.read_settings()
            scarcity.raise_open_files(settings)
            listen.refuse_used_addresses(settings)
            heartbeats = scratch.heartbeat_folder()
            counters.share(settings.max_workers)
        except StartError as error:
            reloading.refuse(error)
    return settings, heartbeats


def _working_folder() -> str:
    """Return the folder in which the service will run. Gunicorn enters it only after it has read its configuration."""
    folder: str = arguments.option("chdir") or "."
    if not Path(folder).is_dir() or not os.access(folder, os.X_OK):
        flaw = f"Gunicorn's --chdir={folder} is not a folder that this user can enter; name another"
        reloading.refuse(SettingsError(flaw))
    return folder


def _end_start_in_a_line() -> None:
    """Let SIGINT end a start in one line. Later, when Gunicorn has set its own handlers, this changes nothing."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    # SIGTERM ends any other process. The first process of a container gets no signal that it has no handler for.
    if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's
    log.refuse(StartError(f"it was interrupted by {signal.Signals(number).name}"))
