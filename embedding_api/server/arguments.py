"""What Gunicorn is told on its command line or in GUNICORN_CMD_ARGS, which its configuration file must know of."""

import os
import sys
from pathlib import Path
from typing import Any

from gunicorn.config import Config

from embedding_api.errors import SettingsError


def told(name: str) -> Any:
    """The value of an option, None if it is not given: the command line wins over GUNICORN_CMD_ARGS."""
    config = Config()
    for arguments in (sys.argv[1:], config.get_cmd_args_from_env()):
        if value := getattr(config.parser().parse_known_args(arguments)[0], name):
            return value
    return None


def working_folder() -> str:
    """Where the service will run: Gunicorn goes there, by --chdir, only after it has read its configuration file.

    Raises:
        SettingsError: Nobody can go there.
    """
    folder: str = told("chdir") or "."
    if not Path(folder).is_dir() or not os.access(folder, os.X_OK):
        raise SettingsError(f"Gunicorn's --chdir={folder} is no folder that this user can enter; name another")
    return folder
