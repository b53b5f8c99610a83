"""The addresses that the service listens on: checked before models load, announced afterwards."""

import errno
import ipaddress
import json
import logging
import os
import shlex
import socket
from collections.abc import Sequence
from typing import Any

from gunicorn.config import Config

from embedding_api.errors import AddressError
from embedding_api.server import arguments
from embedding_api.settings import Settings

logger = logging.getLogger(__name__)

# What a socket's `getsockname` returns: host and port, and more for IPv6; or a path, as bytes for an abstract socket.
Address = tuple[Any, ...] | str | bytes

# The configured addresses when Gunicorn last began to listen; None before that. SIGHUP reads the settings again, and
# with them checks the addresses again.
_announced: list[Address] | None = None

# Where a program on this machine reaches a service that listens on every interface.
_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - it replaces it


def refuse_used_addresses(settings: Settings) -> None:
    """Check that the addresses are free, before the models load and before a reload closes the old sockets.

    Does nothing if the service has the addresses already: after a SIGHUP that changes none, after SIGUSR2, or with a
    socket from systemd. Nor does it check addresses that may be shared, or if nothing will be served.

    Raises:
        AddressError: Another program listens there, or the machine has no such address.
    """
    if {"GUNICORN_FD", "LISTEN_FDS"} & os.environ.keys():
        return
    if any(arguments.option(name) for name in ("reuse_port", "check_config", "print_config")):
        return
    config = Config()
    # Gunicorn's -b wins over the settings.
    config.set("bind", arguments.option("bind") or settings.bind)
    try:
        addresses: list[Address] = config.address
    except RuntimeError as error:
        raise AddressError(f"Gunicorn cannot listen on what -b says: {error}") from error
    if addresses != _announced:
        for address in addresses:
            if isinstance(address, tuple):
                _try(address)
            elif isinstance(address, str):
                _try_path(address)


def _try(address: tuple[Any, ...]) -> None:
    host, port = address
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
        # An impossible name or port is not an OSError.
        except (OSError, UnicodeError, OverflowError) as error:
            bind = arguments.option("bind")
            cure = "check Gunicorn's -b" if bind else "check HOST and PORT"
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                cure = f"stop what listens there, or set another {'port with -b' if bind else 'PORT'}"
                if port in (one[1] for one in _announced or () if isinstance(one, tuple)):
                    cure = "restart the service, whose workers listen there, to give its port another HOST"
            reason = getattr(error, "strerror", None) or error
            raise AddressError(f"cannot listen on {host} port {port}: {reason}; {cure}") from error


def _try_path(path: str) -> None:
    """Check that nobody answers at a unix socket. Gunicorn would take it over, and replaces one that a server left."""
    with socket.socket(socket.AF_UNIX) as trial:
        trial.settimeout(0)
        try:
            number = trial.connect_ex(path)
        except OSError as error:
            raise AddressError(f"cannot listen on unix:{path}: {error}; set another path with Gunicorn's -b") from error
    # EAGAIN: too many connections wait there already.
    if number in (0, errno.EAGAIN):
        cure = "stop what listens there, or set another path with -b"
        raise AddressError(f"cannot listen on unix:{path}: {os.strerror(errno.EADDRINUSE)}; {cure}")


def announce(arbiter: Any, settings: Settings) -> None:
    """Log who can use the service, where it is, and a curl command that works; again only if its address has changed.

    Args:
        arbiter: Gunicorn's. Its listening sockets count, not its configured addresses.
        settings: Say if a key is needed, and which model to ask.
    """
    global _announced
    if arbiter.cfg.address == _announced:
        return
    _announced = list(arbiter.cfg.address)
    # With --reuse-port the sockets are the workers'.
    addresses: list[Address] = [listener.sock.getsockname() for listener in arbiter.LISTENERS] or _announced
    _say_who_may_ask(addresses, settings, cure=_cure(arbiter))
    where = _curl(addresses[0])
    key = ' -H "Authorization: Bearer $API_KEY_SECRET"' if settings.require_auth else ""
    body = json.dumps({"model": settings.supported_models[0].name, "input": "Hello"}, ensure_ascii=False)
    words = shlex.join([*where[:-1], f"{where[-1]}/v1/embeddings", "-d", body])
    logger.info("ready at %s; try: curl%s %s", where[-1], key, words)


def _say_who_may_ask(addresses: Sequence[Address], settings: Settings, *, cure: str) -> None:
    if settings.require_auth:
        return
    beyond = [_url(address) for address in addresses if isinstance(address, tuple) and not _is_loopback(address[0])]
    if beyond:
        key = "unset REQUIRE_AUTH" if settings.api_key_secret else "set API_KEY_SECRET"
        logger.warning("anyone who reaches %s can use this service: %s, or %s", ", ".join(beyond), key, cure)
    else:
        logger.info("no key is needed, and only this machine can ask")


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    # Python before 3.13 takes no IPv4 address within IPv6 for loopback.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _cure(arbiter: Any) -> str:
    """Return how to listen on this machine alone, where the address was chosen."""
    if arbiter.systemd:
        return "set ListenStream of its systemd socket to 127.0.0.1:PORT"
    if arguments.option("bind"):
        return "set Gunicorn's -b to 127.0.0.1:PORT"
    return "set HOST to 127.0.0.1"


def _curl(address: Address) -> list[str]:
    if isinstance(address, tuple):
        return [f"http://{_url((_REACHED_AT.get(address[0], address[0]), *address[1:]))}"]
    if isinstance(address, bytes):
        return ["--abstract-unix-socket", os.fsdecode(address.lstrip(b"\0")), "http://localhost"]
    return ["--unix-socket", address, "http://localhost"]


def _url(address: tuple[Any, ...]) -> str:
    host, port, *_ = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
