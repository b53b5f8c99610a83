"""Measures whether it matters over which worker the connections come: 28 and 4 against 16 and 16.

The kernel spreads new connections as it likes. To get a certain spread, this opens many connections, asks for a small
response on each, finds the worker that owns the other end of each, and closes those that a worker has too many.
"""

import dataclasses
import socket
from collections.abc import Mapping, Sequence

from bench.connection import Address, connect
from bench.contestants import Contestant, Served
from bench.measure import Pace
from bench.texts import Shelf
from bench.workloads import ONE_X_32, SERVICE

UNEVEN, EVEN = (28, 4), (16, 16)

# Connections that are opened at a time, and the most times.
_AT_ONCE, _TIMES = 32, 20
_PROBE = b"GET /health/live HTTP/1.1\r\nHost: bench\r\n\r\n"


@dataclasses.dataclass(frozen=True)
class Spread:
    """Requests per second of each round, with each spread of the connections over two workers."""

    contestant: str
    uneven: list[float]
    even: list[float]


def measure(field: Sequence[Contestant], shelf: Shelf, pace: Pace) -> list[Spread]:
    """Measure the services that have two workers."""
    found = [
        Spread(contestant.name, [], [])
        for contestant in field
        if contestant.name.startswith(SERVICE) and len(contestant.variants[0].computing()) == len(EVEN)
    ]
    served = {contestant.name: contestant.variants[0] for contestant in field}
    n_requests = {
        each.contestant: max(64, round(_rate(served[each.contestant], EVEN, shelf, 128) * pace.share * 1.5))
        for each in found
    }
    for number in range(pace.n_rounds):
        requests = [ONE_X_32.request(shelf) for _ in range(max(n_requests.values(), default=0))]
        for each in found:
            sides = [(each.uneven, UNEVEN), (each.even, EVEN)]
            for rates, shares in sides if number % 2 else reversed(sides):
                rates.append(_run(served[each.contestant], shares, requests[: n_requests[each.contestant]]))
    return found


def _rate(served: object, shares: Sequence[int], shelf: Shelf, n_requests: int) -> float:
    return _run(served, shares, [ONE_X_32.request(shelf) for _ in range(n_requests)])


def _run(served: object, shares: Sequence[int], requests: Sequence[list[str]]) -> float:
    """Return the requests per second with so many connections on each worker."""
    assert isinstance(served, Served)
    connected = opened(served, shares)
    done = served.run(requests, sum(shares), connected=connected)
    return done.n_requests / done.elapsed_s


def opened(served: Served, shares: Sequence[int]) -> list[socket.socket]:
    """Return open connections, so many to each worker, with nothing under way.

    Raises:
        RuntimeError: One worker gets too few, however many are opened.
    """
    connected: list[socket.socket] = []
    for _ in range(_TIMES):
        connected += [_answered(served.server.address) for _ in range(_AT_ONCE)]
        chosen = choose(owners(served, connected), shares)
        if chosen is not None:
            for position, each in enumerate(connected):
                if position not in chosen:
                    each.close()
            return [connected[position] for position in sorted(chosen)]
    for each in connected:
        each.close()
    raise RuntimeError(f"of {len(connected)} connections no {shares} could be chosen: {owners(served, connected)}")


def choose(owner_of: Sequence[int], shares: Sequence[int]) -> set[int] | None:
    """Return the positions of connections such that the workers have so many; None if there are too few.

    Args:
        owner_of: The worker of each connection.
        shares: Numbers of connections. The worker with most connections gets the first number.
    """
    by_owner: dict[int, list[int]] = {}
    for position, owner in enumerate(owner_of):
        by_owner.setdefault(owner, []).append(position)
    ordered = sorted(by_owner.values(), key=len, reverse=True)
    if len(ordered) < len(shares) or any(len(each) < n for each, n in zip(ordered, shares, strict=False)):
        return None
    return {position for each, n in zip(ordered, shares, strict=False) for position in each[:n]}


def owners(served: Served, connected: Sequence[socket.socket]) -> list[int]:
    """Return the process id of the worker that has the other end of each connection; 0 if none has it."""
    pids: Mapping[Address, int] = {
        (connection.raddr.ip, connection.raddr.port): worker.pid
        for worker in served.computing()
        for connection in worker.net_connections("tcp")
        if connection.raddr
    }
    return [pids.get(each.getsockname(), 0) for each in connected]


def _answered(address: Address) -> socket.socket:
    """Return a connection on which the server has answered once, so that a worker has accepted it."""
    connected = connect(address)
    connected.settimeout(30)
    connected.sendall(_PROBE)
    received = b""
    while b"\r\n\r\n" not in received or len(received) < _length(received):
        piece = connected.recv(4096)
        if not piece:
            raise RuntimeError("the server closed a connection after GET /health/live")
        received += piece
    connected.settimeout(0)
    return connected


def _length(received: bytes) -> int:
    """Return the length of a response from its head."""
    head, _, _ = received.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(head) + 4 + int(line.partition(b":")[2])
    return len(head) + 4
