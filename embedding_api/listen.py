"""The addresses that the service listens on: free before models load, announced once they are."""

import errno
import logging
import os
import socket
import sys
from typing import Any

from gunicorn.config import Config

from embedding_api.config import Settings
from embedding_api.errors import AddressError

logger = logging.getLogger(__name__)

# Whether this process listens already; after SIGHUP Gunicorn reads its settings, and so asks, again.
_is_announced = False

# Where a program on this machine finds a service that listens on every interface.
_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - translates it away


def refuse_used_addresses(settings: Settings) -> None:
    """Finds out that a port is taken before the models load, not after.

    Does nothing where the addresses are this service's own already: after SIGHUP, SIGUSR2, or with a socket from
    systemd; nor where they may be shared, or nothing will be served.

    Raises:
        AddressError: Somebody else listens there.
    """
    if _is_announced or {"GUNICORN_FD", "LISTEN_FDS"} & os.environ.keys():
        return
    config = _gunicorn_config(settings)
    if config.reuse_port or config.check_config:
        return
    for address in config.address:
        if not isinstance(address, tuple):
            continue
        host, port = address
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind(address)
            except OSError as error:
                is_taken = error.errno == errno.EADDRINUSE
                cure = "stop what listens there, or set another PORT" if is_taken else "check HOST and PORT"
                raise AddressError(f"cannot listen on {host} port {port}: {error.strerror}; {cure}") from error


def _gunicorn_config(settings: Settings) -> Config:
    """What Gunicorn will do in the end: its command line wins over GUNICORN_CMD_ARGS, and that over the settings."""
    config = Config()
    config.set("bind", settings.bind)
    for arguments in (config.get_cmd_args_from_env(), sys.argv[1:]):
        told = config.parser().parse_known_args(arguments)[0]
        for name in ("bind", "reuse_port", "check_config"):
            if getattr(told, name):
                config.set(name, getattr(told, name))
    return config


def announce(address: Any, settings: Settings) -> None:
    """Logs where the service is and a curl line that works.

    Args:
        address: What it listens on, as `socket.getsockname` has it.
        settings: Say whether a key is needed, and which model to ask.
    """
    global _is_announced
    _is_announced = True
    where = ["--unix-socket", str(address), "http://localhost"]
    if isinstance(address, tuple):
        host = _REACHED_AT.get(address[0], address[0])
        where = [f"http://[{host}]:{address[1]}" if ":" in str(host) else f"http://{host}:{address[1]}"]
    key = ' -H "Authorization: Bearer $API_KEY_SECRET"' if settings.require_auth else ""
    body = f'{{"model": "{settings.supported_models[0].name}", "input": "Hello"}}'
    logger.info("ready at %s; try: curl%s %s/v1/embeddings -d '%s'", where[-1], key, " ".join(where), body)
