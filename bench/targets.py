"""The targets of the service and their outcomes: arithmetic on the measurements, nothing else."""

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import median

from bench import workloads
from bench.contestants import PEER, PEER_AT_ITS_BEST, PRECISIONS
from bench.interference import Interference
from bench.measure import Row
from bench.workloads import Workload

# Lowest ratio of texts/s to the peer's, at float32, bfloat16 and int8.
AGAINST_PEER: Mapping[Workload, tuple[float, float, float]] = {
    workloads.ONE: (2.5, 3.5, 4.5),
    workloads.ONE_X_32: (2.6, 5, 6.5),
    workloads.MIXED_X_1: (3.5, 6, 8),
    workloads.MIXED_X_4: (2.2, 4, 5.5),
}

# Lowest ratios of bulk tokens/s to the bare backend's, and of texts/s of one bulk client to those of four.
OF_BARE, ONE_CLIENT_OF_FOUR = 0.85, 0.90

MAX_PRIVATE_MB = 40


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A target and its outcome.

    Attributes:
        target: The target in words, with its bound.
        measured: The measured value, with the range over rounds if there is one.
        met: True if the target is met; None if it was not measured.
    """

    target: str
    measured: str
    met: bool | None


def ratios(ours: Row, theirs: Row) -> list[float]:
    """Return the ratios of texts/s, round by round."""
    return [one / other for one, other in zip(ours.texts_per_s_of_rounds, theirs.texts_per_s_of_rounds, strict=True)]


def outcomes(rows: Sequence[Row], interferences: Sequence[Interference]) -> list[Outcome]:
    """Return the outcomes of all targets, in the report's order."""
    by_name = {(row.workload, row.contestant): row for row in rows}
    found = []
    for workload, bounds in AGAINST_PEER.items():
        for precision, bound in zip(PRECISIONS, bounds, strict=True):
            ours, theirs = (by_name.get((workload.name, name)) for name in (f"service {precision}", PEER))
            outcome = _at_least(f"{workload.name}, {precision}, against {PEER}", ours, theirs, bound, "x")
            best = by_name.get((workload.name, PEER_AT_ITS_BEST))
            if ours is not None and best is not None:
                more = f"{outcome.measured}; {median(ratios(ours, best)):.2f}x in batches of 8"
                outcome = dataclasses.replace(outcome, measured=more)
            found.append(outcome)
    four, one = workloads.BULK_X_4.name, workloads.BULK_X_1.name
    for precision in PRECISIONS:
        ours, bare = (by_name.get((four, f"{kind} {precision}")) for kind in ("service", "bare"))
        found.append(_at_least(f"bulk, {precision}, against the bare backend", ours, bare, OF_BARE, "%"))
    for precision in PRECISIONS:
        ours, theirs = (by_name.get((name, f"service {precision}")) for name in (one, four))
        found.append(_at_least(f"bulk, {precision}, one client against four", ours, theirs, ONE_CLIENT_OF_FOUR, "%"))
    by_contestant = {each.contestant: each for each in interferences}
    found += [_bounded(precision, by_contestant.get(f"service {precision}")) for precision in PRECISIONS]
    return found


def private_memory(megabytes: Mapping[str, Sequence[float]]) -> list[Outcome]:
    """Return the outcomes of the target for private memory, one for each precision of the service."""
    return [
        Outcome(
            f"private memory of a worker, {name.removeprefix('service ')}, at most {MAX_PRIVATE_MB} MB",
            " and ".join(f"{value:.0f}" for value in values) + " MB",
            max(values) <= MAX_PRIVATE_MB,
        )
        for name, values in megabytes.items()
        if name.startswith("service") and values
    ]


def _at_least(what: str, ours: Row | None, theirs: Row | None, bound: float, unit: str) -> Outcome:
    def shown(value: float) -> str:
        return f"{100 * value:.0f} %" if unit == "%" else f"{value:.2f}x"

    target = f"{what}: at least {shown(bound) if unit == '%' else f'{bound:g}x'}"
    if ours is None or theirs is None:
        return Outcome(target, "not measured", None)
    of_rounds = ratios(ours, theirs)
    return Outcome(
        target,
        f"{shown(median(of_rounds))} ({shown(min(of_rounds))} to {shown(max(of_rounds))})",
        median(of_rounds) >= bound,
    )


def _bounded(precision: str, measured: Interference | None) -> Outcome:
    target = f"p99 of a short text beside bulk work, {precision}: at most p99 idle + 2 x one text of a full window"
    if measured is None:
        return Outcome(target, "not measured", None)
    return Outcome(
        target,
        f"{measured.loaded_p99_ms:.1f} ms of {measured.bound_ms:.1f} ms",
        measured.loaded_p99_ms <= measured.bound_ms,
    )
