"""Measures one text of 512 tokens on the large model, against the same service held to one core.

Held to one core means a server under `taskset` with one worker. The service counts the cores that it may use, so that
this server computes each text with one core, whatever the service does with the cores of a larger machine. It needs no
setting of the service.
"""

import contextlib
import dataclasses
import os
import sys
from pathlib import Path

from bench import environments, large, servers
from bench.contestants import Served
from bench.environments import ENVIRONMENTS
from bench.measure import Pace
from bench.servers import Server
from bench.texts import Shelf
from bench.workloads import TokenCount
from embedding_api.machine import cores

N_TOKENS = 512
PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Lone:
    """Milliseconds of one text in each round, by the service with all cores and by the one held to one core."""

    precision: str
    all_cores_ms: list[float]
    one_core_ms: list[float]


def measure(pace: Pace, left_out: dict[str, str]) -> list[Lone]:
    """Measure each precision; make the model if necessary.

    Args:
        pace: Number of rounds.
        left_out: Gets the reason for each precision that is not measured.
    """
    folder = large.model()
    cache = ENVIRONMENTS / "large-cache"
    shelf = Shelf(cut=TokenCount(folder, N_TOKENS).cut)
    found = []
    for precision in PRECISIONS:
        try:
            found.append(_measure(folder, cache, precision, shelf, pace))
        except (RuntimeError, OSError) as error:
            left_out[f"one text of {N_TOKENS} tokens, large model, {precision}"] = str(error)
    return found


def _measure(folder: Path, cache: Path, precision: str, shelf: Shelf, pace: Pace) -> Lone:
    gunicorn = [sys.executable, "-m", "gunicorn"]
    first_core = str(min(os.sched_getaffinity(0)))
    held = [environments.program("taskset"), "--cpu-list", first_core, *gunicorn]
    n_cores = cores.count()
    with contextlib.ExitStack() as stack:
        started: list[Server] = []
        # One worker more than cores is the default, and computes with all of them.
        for command, n_workers in ((gunicorn, n_cores + 1), (held, 1)):
            variables = large.service(folder, cache, precision, n_workers)
            started.append(
                stack.enter_context(servers.start(f"large, {precision}", command, variables, n_workers=n_workers))
            )
            large.wait(started[-1], precision)  # one after another: the first may convert the model for both
        lone = Lone(precision, [], [])
        sides = list(zip((lone.all_cores_ms, lone.one_core_ms), started, strict=True))
        for number in range(-1, pace.n_rounds):
            text = shelf.text("window")
            for measured_ms, server in sides if number % 2 else reversed(sides):
                (latency_s,) = Served(server, "large").run([[text]], 1).latencies_s
                if number >= 0:  # the first text warms both up
                    measured_ms.append(1000 * latency_s)
        return lone
