"""Measures the private memory of processes after work."""

from collections.abc import Sequence

import psutil

from bench import machine
from bench.contestants import Contestant, Served
from bench.texts import Shelf
from bench.workloads import MIXED_X_4

N_REQUESTS = 1000
_AT_ONCE = 50


def after_requests(contestant: Contestant, shelf: Shelf, n_requests: int = N_REQUESTS) -> list[float]:
    """Send requests of 32 mixed texts, on average this many to each worker; return the private MiB of each worker.

    Requests are made a few at a time, so that the client stays small.
    """
    (served,) = contestant.variants
    assert isinstance(served, Served)
    left = n_requests * len(served.computing())
    while left > 0:
        requests = [MIXED_X_4.request(shelf) for _ in range(min(left, _AT_ONCE))]
        served.run(requests, MIXED_X_4.n_connections)
        left -= len(requests)
        print(f"\r{contestant.name}: {left} requests to go ", end="", flush=True)
    print()
    return machine.private_mib(served.computing())


def now(field: Sequence[Contestant]) -> dict[str, list[float]]:
    """Return the private MiB of each computing process, for the first variant of each contestant."""
    found = {}
    for contestant in field:
        processes: list[psutil.Process] = contestant.variants[0].computing()
        found[contestant.name] = machine.private_mib(processes)
    return found
