"""Options of Gunicorn's command line and of GUNICORN_CMD_ARGS that its configuration file must know."""

import os
import sys
from pathlib import Path
from typing import Any

from gunicorn.config import Config

from embedding_api.errors import SettingsError


def told(name: str) -> Any:
    """Return the value of an option; None if it is not given. The command line wins over GUNICORN_CMD_ARGS."""
    config = Config()
    for arguments in (sys.argv[1:], config.get_cmd_args_from_env()):
        if value := getattr(config.parser().parse_known_args(arguments)[0], name):
            return value
    return None


def working_folder() -> str:
    """Return the folder in which the service will run. Gunicorn enters it only after it has read its configuration.

    Raises:
        SettingsError: This user cannot enter it.
    """
    folder: str = told("chdir") or "."
    if not Path(folder).is_dir() or not os.access(folder, os.X_OK):
        raise SettingsError(f"Gunicorn's --chdir={folder} is not a folder that this user can enter; name another")
    return folder
