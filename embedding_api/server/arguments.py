"""Options of Gunicorn's command line and of GUNICORN_CMD_ARGS that its configuration file must know."""

import sys
from typing import Any

from gunicorn.config import Config


def option(name: str) -> Any:
    """Return the value of an option; None if it is not given. The command line wins over GUNICORN_CMD_ARGS."""
    config = Config()
    for arguments in (sys.argv[1:], config.get_cmd_args_from_env()):
        if value := getattr(config.parser().parse_known_args(arguments)[0], name):
            return value
    return None
