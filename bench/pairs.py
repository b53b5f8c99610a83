"""`python -m bench pairs --before CHECKOUT`: compares the service of another checkout with this one, in pairs of runs.

Both servers run the whole time, and one is idle while the other is measured. A pair is a run of each with the same new
texts, one right after the other, so that other work on the machine slows down both alike.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple, Protocol

import numpy as np
import psutil

from bench import machine, servers, workloads
from bench.contestants import OURS, Served, Texts
from bench.servers import ROOT, Server
from bench.table import number
from bench.table import table as markdown_table
from bench.texts import Shelf
from bench.workloads import Workload
from embedding_api.machine import cores

WORKLOADS = (workloads.ONE, workloads.ONE_X_32, workloads.MIXED_X_4)

# Seconds of a run. It gets more requests than it should need, so that the time ends the run and not a lack of requests.
RUN_S, SUPPLY = 3.0, 1.3

# Least and most pairs of a workload. Between these numbers, pairs go on until both intervals are narrower than WIDTH.
N_LEAST, N_MOST, WIDTH = 30, 120, 0.06

_N_RESAMPLES = 2000


class Run(NamedTuple):
    """The result of one side in a run.

    Attributes:
        requests_per_s: Answered requests per second of wall time.
        cpu_ms: Processor time of master and workers per request, in milliseconds.
    """

    requests_per_s: float
    cpu_ms: float


class Side(Protocol):
    """A server that is compared."""

    def run(self, requests: Sequence[Texts], n_connections: int) -> Run:
        """Answer requests for RUN_S seconds, or until there are no more."""


@dataclasses.dataclass(frozen=True)
class Service:
    """The service of one checkout."""

    server: Server
    model: str

    def run(self, requests: Sequence[Texts], n_connections: int) -> Run:
        """See `Side.run`.

        Raises:
            RuntimeError: A request failed, or a worker was replaced.
        """
        before = self._cpu_s()
        done = Served(self.server, self.model).run(requests, n_connections, limit_s=RUN_S)
        after = self._cpu_s()
        if before.keys() != after.keys():
            raise RuntimeError(f"{self.server.name}: a worker was replaced; its processor time is lost")
        return Run(
            done.n_requests / done.elapsed_s, 1000 * sum(after[pid] - before[pid] for pid in after) / done.n_requests
        )

    def _cpu_s(self) -> dict[int, float]:
        """Return the processor time of master and workers so far, in seconds by process id."""
        master = psutil.Process(self.server.process.pid)
        times = {process.pid: process.cpu_times() for process in (master, *master.children())}
        return {pid: time.user + time.system for pid, time in times.items()}


class Estimate(NamedTuple):
    """A median, and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def estimate(ratios: Sequence[float]) -> Estimate:
    """Return the median of ratios. The same ratios always give the same interval."""
    values = np.asarray(ratios)
    resamples = np.random.default_rng(0).choice(values, (_N_RESAMPLES, len(values)))
    low, high = np.percentile(np.median(resamples, axis=1), (2.5, 97.5))
    return Estimate(median(ratios), float(low), float(high))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All pairs of runs of one workload.

    Attributes:
        workload: Its name.
        before, after: The runs of each side, pair by pair.
    """

    workload: str
    before: list[Run] = dataclasses.field(default_factory=list)
    after: list[Run] = dataclasses.field(default_factory=list)

    @property
    def rate(self) -> Estimate:
        """Ratio after/before of requests per second."""
        return self._ratio(lambda run: run.requests_per_s)

    @property
    def cpu(self) -> Estimate:
        """Ratio after/before of processor time per request."""
        return self._ratio(lambda run: run.cpu_ms)

    def is_precise(self) -> bool:
        """Return True if both intervals are narrower than WIDTH."""
        return all(ratio.high - ratio.low < WIDTH for ratio in (self.rate, self.cpu))

    def row(self) -> list[str]:
        """Return the comparison's row of the table."""
        numbers = [
            number(median(value(run) for run in runs))
            for value in (lambda run: run.requests_per_s, lambda run: run.cpu_ms)
            for runs in (self.before, self.after)
        ]
        return [self.workload, str(len(self.before)), *numbers[:2], str(self.rate), *numbers[2:], str(self.cpu)]

    def _ratio(self, value: Callable[[Run], float]) -> Estimate:
        return estimate([value(after) / value(before) for before, after in zip(self.before, self.after, strict=True)])


def compare(
    workload: Workload, before: Side, after: Side, shelf: Shelf, *, n_least: int = N_LEAST, n_most: int = N_MOST
) -> Comparison:
    """Run pairs of a workload until the comparison is precise. Sides take turns in beginning.

    Args:
        workload: Workload of the requests.
        before: The side that ratios are relative to.
        after: The other side.
        shelf: Supplies the texts.
        n_least: Least number of pairs.
        n_most: Most pairs.
    """
    comparison = Comparison(workload.name)
    sides = ((before, comparison.before), (after, comparison.after))
    n_requests = _n_requests(workload, [_warmed_up(workload, side, shelf) for side, _ in sides])
    while len(comparison.before) < n_least or (len(comparison.before) < n_most and not comparison.is_precise()):
        requests = [workload.request(shelf) for _ in range(n_requests)]
        is_even = len(comparison.before) % 2 == 0
        for side, runs in sides if is_even else reversed(sides):
            runs.append(side.run(requests, workload.n_connections))
        n_requests = _n_requests(workload, [comparison.before[-1], comparison.after[-1]])
    return comparison


def _warmed_up(workload: Workload, side: Side, shelf: Shelf) -> Run:
    """Return a run that does not count: the first requests, on which the number of further ones is based."""
    requests = [workload.request(shelf) for _ in range(10 * workload.n_connections)]
    return side.run(requests, workload.n_connections)


def _n_requests(workload: Workload, runs: Sequence[Run]) -> int:
    """Return how many requests a run needs if it is as fast as the faster of these."""
    return max(workload.n_connections, round(RUN_S * SUPPLY * max(run.requests_per_s for run in runs)))


@contextlib.contextmanager
def _started(name: str, checkout: Path) -> Iterator[Server]:
    """Start the service of a checkout, with the checkout's own environment if it has one."""
    python = checkout / ".venv/bin/python"
    command = [str(python) if python.exists() else sys.executable, "-m", "gunicorn"]
    n_workers = cores.count()
    with servers.start(name, command, OURS | {"WORKERS": str(n_workers)}, n_workers=n_workers, cwd=checkout) as server:
        yield server


def _served(server: Server) -> dict[str, object]:
    """Return name, backend and precision of the service's first model."""
    server.wait("/health/ready")
    model = json.loads(server.wait("/v1/models"))["data"][0]
    return {key: model[key] for key in ("id", "backend", "precision")}


def main(checkout: Path, n_pairs: int | None) -> None:
    """Print the comparison of a checkout with this one.

    Args:
        checkout: Folder of the other checkout.
        n_pairs: Pairs of each workload; None for as many as precision needs.

    Raises:
        RuntimeError: A server did not start, failed, or serves something else than the other.
    """
    limits = {} if n_pairs is None else {"n_least": n_pairs, "n_most": n_pairs}
    print(*(f"{name:<9} {value}" for name, value in machine.here().items()), sep="\n")
    print(f"{'before':<9} {machine.commit(checkout)} in {checkout}", flush=True)
    with _started("before", checkout.resolve()) as before, _started("after", ROOT) as after:
        served, served_after = _served(before), _served(after)
        if served != served_after:
            raise RuntimeError(f"before serves {served}, after {served_after}; give both the same settings")
        print(f"{'model':<9} {', '.join(map(str, served.values()))}", flush=True)
        sides = [Service(server, str(served["id"])) for server in (before, after)]
        shelf, others = Shelf(), machine.Others()
        comparisons = []
        for workload in WORKLOADS:
            comparisons.append(compare(workload, *sides, shelf, **limits))
            done = comparisons[-1]
            print(f"{done.workload}: {len(done.before)} pairs, requests/s x {done.rate}", flush=True)
        print(f"other work: {others.cores():.2f} cores on average\n\n{table(comparisons)}\n")
        for server in (before, after):
            memory = ", ".join(map(number, machine.private_mib(server.computing())))
            print(f"private memory of the workers {server.name}: {memory} MB")


def table(comparisons: Sequence[Comparison]) -> str:
    """Return the table of all workloads."""
    header = (
        "workload",
        "pairs",
        "requests/s before",
        "after",
        "ratio (95 %)",
        "CPU ms before",
        "after",
        "ratio (95 %)",
    )
    return markdown_table(header, [comparison.row() for comparison in comparisons])
