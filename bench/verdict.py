"""Judges a soak: does the service still behave as after the warm-up? The module only computes from the record."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from bench.measure import percentile
from bench.outcome import Outcome
from bench.site import Visit
from bench.table import number, table
from embedding_api.server.pool import N_SPARE_THREADS

# THREADS of the service under test, and all threads of a worker: THREADS, the spare threads, and the main, the
# inference and the mailbox thread.
THREADS = 32
WORKER_THREADS = THREADS + N_SPARE_THREADS + 3

# Bounds on the growth of a worker's private memory, from the minute after the warm-up to the last. Both are medians of
# one sample a second, because batches come and go. A run shorter than LONG_S shows less of a leak, so its bound is
# lower; in a minute it finds a leak of some KB a request. Without a leak, allocators varied by less than 2 MB.
LONG_S = 300
MAX_GROWTH_MB, MAX_GROWTH_OF_SHORT_RUN_MB = 5, 3

# Bound on p99 of the last third relative to the middle third. p99 depends on the few floods in a third. If other work
# left less of the machine in the last third than in the middle one, p99 may be longer in proportion.
MAX_RISE, MAX_RISE_MS = 2, 50


class Span(NamedTuple):
    """A span of time, in seconds on the monotonic clock."""

    start: float
    end: float

    def holds(self, at_s: float) -> bool:
        """Return True for a moment in the span."""
        return self.start <= at_s < self.end


class Counts(NamedTuple):
    """Numbers of open descriptors and of threads of a process at rest."""

    descriptors: int
    threads: int


@dataclasses.dataclass(frozen=True)
class Course:
    """The record of a soak.

    Attributes:
        duration_s: Seconds with clients, without the rest between the two parts.
        middle, last: Thirds of that time; the middle one begins after the warm-up.
        early, late: The first and the last minute, or third, after the warm-up.
        private_mb: Samples (time, MB) of the private memory of each worker that ran at the start.
        others_s: Samples (time, seconds) of the processor time that other work has used.
        before, after: Counts at rest, by process id; the master comes first.
        visits: Visits of all clients.
        flaws: Results that no client may see.
        log: The server's log.
    """

    duration_s: float
    middle: Span
    last: Span
    early: Span
    late: Span
    private_mb: dict[int, list[tuple[float, float]]]
    others_s: Sequence[tuple[float, float]]
    before: dict[int, Counts]
    after: dict[int, Counts]
    visits: Sequence[Visit]
    flaws: Counter[str]
    log: str


def outcomes(course: Course) -> list[Outcome]:
    """Return each target and its outcome."""
    pids = list(course.before)
    statuses = Counter(visit.status for visit in course.visits)
    n_5xx = sum(n for status, n in statuses.items() if status and status >= 500)
    n_5xx = max(n_5xx, len(re.findall(r" status=5\d\d ", course.log)))
    n_complaints = len(complaints(course.log))
    return [
        _growth(course),
        _same_descriptors(course),
        _same_threads(course),
        _rise(course),
        Outcome("workers replaced: none", f"{len(set(course.after) - set(pids))}", pids == list(course.after)),
        Outcome(
            "every response as it must be",
            f"{len(course.visits)} requests, {statuses[429]} refused with 429; {course.flaws.total()} flaws",
            not course.flaws,
        ),
        Outcome("5xx: none", f"{n_5xx}", not n_5xx),
        Outcome("ERROR or traceback in the log: none", f"{n_complaints}", not n_complaints),
    ]


def complaints(log: str) -> list[str]:
    """Return the log's lines that report an error."""
    return [line for line in log.splitlines() if re.search(r"\b(ERROR|CRITICAL)\b|Traceback", line)]


def clients(course: Course) -> str:
    """Return the table of clients and the statuses that they got."""
    rows = []
    for name in dict.fromkeys(visit.client for visit in course.visits):
        visits = [visit for visit in course.visits if visit.client == name]
        statuses = Counter("-" if visit.status is None else str(visit.status) for visit in visits)
        served_ms = [1000 * visit.latency_s for visit in visits if visit.status == 200]
        shown = ", ".join(f"{n} x {status}" for status, n in sorted(statuses.items()))
        rows.append([name, shown, *(number(percentile(served_ms, percent)) for percent in (50, 99))])
    return table(("client", "statuses", "p50 ms of 200", "p99 ms"), sorted(rows))


def _growth(course: Course) -> Outcome:
    limit_mb = MAX_GROWTH_MB if course.duration_s >= LONG_S else MAX_GROWTH_OF_SHORT_RUN_MB
    target = f"private memory of each worker, after the warm-up: less than {limit_mb} MB more"
    shown, grown = [], []
    for samples in course.private_mb.values():
        early, late = ([mb for at_s, mb in samples if span.holds(at_s)] for span in (course.early, course.late))
        if not early or not late:
            return Outcome(target, "not recorded to the end", met=False)
        shown.append(f"{median(early):.1f} to {median(late):.1f}")
        grown.append(median(late) - median(early))
    return Outcome(target, f"{', '.join(shown)} MB", max(grown) < limit_mb)


def _same_descriptors(course: Course) -> Outcome:
    before, after = (_by_process(counts, "descriptors") for counts in (course.before, course.after))
    return Outcome("descriptors of master and workers, at rest: as before", _changes(before, after), before == after)


def _same_threads(course: Course) -> Outcome:
    before, after = (_by_process(counts, "threads") for counts in (course.before, course.after))
    # A pool starts a thread when all of its threads are busy, which may not have happened in the warm-up.
    master = next(iter(before))
    most = {pid: n if pid == master else max(n, WORKER_THREADS) for pid, n in before.items()}
    met = before.keys() == after.keys() and all(before[pid] <= n <= most[pid] for pid, n in after.items())
    target = f"threads of master and workers, at rest: as before, or the {WORKER_THREADS} that a worker may start"
    return Outcome(target, _changes(before, after), met)


def _by_process(counts: dict[int, Counts], what: str) -> dict[int, int]:
    return {pid: getattr(one, what) for pid, one in counts.items()}


def _changes(before: dict[int, int], after: dict[int, int]) -> str:
    return ", ".join(f"{n} to {after.get(pid, 'none')}" for pid, n in before.items())


def _rise(course: Course) -> Outcome:
    target = f"p99 of single short texts, last third against middle third: at most x {MAX_RISE} + {MAX_RISE_MS} ms"
    p99s = [
        percentile(
            [
                1000 * visit.latency_s
                for visit in course.visits
                if visit.client.startswith("short") and visit.status == 200 and span.holds(visit.at_s)
            ],
            99,
        )
        for span in (course.middle, course.last)
    ]
    if None in p99s:
        return Outcome(target, "no 200", met=False)
    middle_ms, last_ms = p99s
    middle_cores, last_cores = (_free_cores(course, span) for span in (course.middle, course.last))
    limit_ms = MAX_RISE * middle_ms * max(1, middle_cores / last_cores) + MAX_RISE_MS
    shown = f"{middle_ms:.0f} to {last_ms:.0f} ms; others left {middle_cores:.1f} and {last_cores:.1f} cores"
    return Outcome(target, shown, last_ms <= limit_ms)


def _free_cores(course: Course, span: Span) -> float:
    """Return the cores that other work left; at least a tenth of one, which a process always gets."""
    (start_s, before_s), *_, (end_s, after_s) = [each for each in course.others_s if span.holds(each[0])]
    return max(0.1, os.cpu_count() - (after_s - before_s) / (end_s - start_s))
