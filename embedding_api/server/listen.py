"""The addresses that the service listens on: free before models load, announced once they are."""

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

# As a socket's `getsockname` has it: host and port, and more for IPv6; or a path, in bytes if it is in no file system.
Address = tuple[Any, ...] | str | bytes

# What Gunicorn was told to listen on when it last began to; None before it does. After SIGHUP it reads its settings,
# and so asks whether they are free, again.
_announced: list[Address] | None = None

# Where a program on this machine finds a service that listens on every interface.
_REACHED_AT = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - translates it away


def refuse_used_addresses(settings: Settings) -> None:
    """Finds out that a port is taken before the models load, not after; and before a reload gives up the old ones.

    Does nothing where the addresses are this service's own already: after a SIGHUP that changes none, SIGUSR2, or with
    a socket from systemd; nor where they may be shared, or nothing will be served.

    Raises:
        AddressError: Somebody else listens there, or nobody can.
    """
    if {"GUNICORN_FD", "LISTEN_FDS"} & os.environ.keys():
        return
    if any(arguments.told(name) for name in ("reuse_port", "check_config", "print_config")):
        return
    addresses = _wanted(settings)
    if addresses == _announced:
        return
    for address in addresses:
        if isinstance(address, tuple):
            _try(address)


def _wanted(settings: Settings) -> list[Address]:
    """What Gunicorn will listen on in the end: what it is told wins over the settings."""
    config = Config()
    config.set("bind", arguments.told("bind") or settings.bind)
    try:
        return list(config.address)
    except RuntimeError as error:
        raise AddressError(f"Gunicorn cannot listen on what -b says: {error}") from error


def _try(address: tuple[Any, ...]) -> None:
    host, port = address
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
        # Names and ports that can be none are no errors of the system.
        except (OSError, UnicodeError, OverflowError) as error:
            bind = arguments.told("bind")
            cure = "check Gunicorn's -b" if bind else "check HOST and PORT"
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                cure = f"stop what listens there, or set another {'port with -b' if bind else 'PORT'}"
                if port in (one[1] for one in _announced or () if isinstance(one, tuple)):
                    cure = "restart the service, whose workers listen there, to give its port another HOST"
            reason = getattr(error, "strerror", None) or error
            raise AddressError(f"cannot listen on {host} port {port}: {reason}; {cure}") from error


def announce(arbiter: Any, settings: Settings) -> None:
    """Logs who may ask, where the service is and a curl line that works; again only if it listens elsewhere now.

    Args:
        arbiter: Gunicorn's, of which the sockets that listen count, whoever opened them, and not what was told.
        settings: Say whether a key is needed, and which model to ask.
    """
    global _announced
    if arbiter.cfg.address == _announced:
        return
    _announced = list(arbiter.cfg.address)
    # With --reuse-port each worker has sockets of its own.
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
    """How to listen on this machine alone, for who chose the address."""
    if arbiter.systemd:
        return "set ListenStream of its systemd socket to 127.0.0.1:PORT"
    if arguments.told("bind"):
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
