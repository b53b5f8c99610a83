"""`python -m bench soak`: whether the service stays as it is, with clients of all kinds, for as long as one likes.

The first minute, or third, is for getting warm: workers write to pages that they shared with the master, allocators
find their size, threads start. Then all clients leave, descriptors and threads are counted, and all come again.
"""

import contextlib
import dataclasses
import os
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple, Self

import psutil

from bench import crowd, machine, reference, report, servers
from bench.contestants import OURS
from bench.crowd import Known, Site, Visit
from bench.measure import percentile
from bench.servers import ROOT, Server
from bench.targets import Outcome
from bench.texts import Shelf
from embedding_api.engine.models import sources
from embedding_api.server.worker import N_SPARE_THREADS
from embedding_api.settings import Settings, load_settings

# What fills all threads in the first flood, and the queue in the second.
N_WORKERS, THREADS, MAX_QUEUED_TOKENS = 2, 32, 6000
# Those, the spare ones, and the main, the inference and the courier thread.
WORKER_THREADS = THREADS + N_SPARE_THREADS + 3
_SERVICE = OURS | {
    "API_KEY_SECRET": crowd.KEY,
    "WORKERS": str(N_WORKERS),
    "THREADS": str(THREADS),
    "MAX_QUEUED_TOKENS": str(MAX_QUEUED_TOKENS),
    "MAX_BODY_BYTES": str(crowd.MAX_BODY_BYTES),
    "CLIENT_TIMEOUT_S": "3",
    "DRAIN_S": "0",
    "PRECISION": "float32",
    "TRUNCATE": "true",
    "LOG_LEVEL": "INFO",
    "LOG_FORMAT": "text",
}

# Of a worker's private memory, from the minute after the warm-up to the last; both are medians of what is seen once a
# second, since batches come and go. A run of less than LONG_S shows less of a leak, and is held to less: in a minute it
# finds some KB a request. What was seen of allocators' moods was below 2 MB.
WARM_S, LONG_S = 60, 300
MAX_GROWTH_MB, MAX_GROWTH_OF_SHORT_RUN_MB = 5, 3

# p99 of the last third against that of the middle one. A third has few floods, and they are what p99 is made of. Where
# other work on the machine left less of it in the last third than in the middle one, p99 may be longer by as much.
MAX_RISE, MAX_RISE_MS = 2, 50

_SETTLED_S, _SETTLING_S = 1, 30

_N_KNOWN = {"short": 100, "passage": 40, "long": 16}


class Span(NamedTuple):
    """A time, in seconds on the monotonic clock."""

    start: float
    end: float

    def holds(self, at_s: float) -> bool:
        """Whether a moment is in it."""
        return self.start <= at_s < self.end


class Counts(NamedTuple):
    """What a process has open at rest."""

    descriptors: int
    threads: int


@dataclasses.dataclass(frozen=True)
class Course:
    """What was seen.

    Attributes:
        duration_s: How long clients came, without the rest between.
        middle, last: Thirds of that; the middle one begins after the warm-up.
        early, late: As far apart as can be after the warm-up; a minute each, or a third.
        private_mb: For each worker at the start the private memory, and when; the time comes first.
        others_s: What other work had computed on this machine since some moment, and when; the time comes first.
        before, after: At rest, by process; the master is the first.
        visits: Of all clients.
        flaws: What no client may see.
        log: The server's.
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


def main(duration_s: float) -> None:
    """Runs for so many seconds, and prints what became of the service; the exit code is not 0 if it is worse for it."""
    settings = load_settings(ROOT / ".env")
    print(*(f"{name:<9} {value}" for name, value in machine.circumstances(settings).items()), sep="\n", flush=True)
    course = run(settings, duration_s)
    told = outcomes(course)
    print(f"\n{clients(course)}\n\n{report.targets(told)}")
    print(*(f"- {flaw}: {n}" for flaw, n in course.flaws.items()), *complaints(course.log)[:20], sep="\n")
    sys.exit(not all(outcome.met for outcome in told))


def run(settings: Settings, duration_s: float) -> Course:
    """Starts the service and lets clients come."""
    spec = settings.supported_models[0]
    known = _known(sources.locate(spec, settings))
    command = [sys.executable, "-m", "gunicorn"]
    with servers.start("soak", command, _SERVICE, n_workers=N_WORKERS) as server:
        server.wait("/health/ready")
        while len(server.computing()) < N_WORKERS:
            time.sleep(0.1)
        site = Site(server.address, spec.name, known, n_flood=2 * N_WORKERS * THREADS)
        with _Watch(server) as watch:
            window_s = min(WARM_S, duration_s / 3)
            crowd.run(site, window_s)
            before = _at_rest(server)
            start = time.monotonic()
            crowd.run(site, duration_s - window_s)
            end = start + duration_s - window_s
        return Course(
            duration_s=duration_s,
            middle=Span(end - duration_s * 2 / 3, end - duration_s / 3),
            last=Span(end - duration_s / 3, end),
            early=Span(start, start + window_s),
            late=Span(end - window_s, end),
            private_mb=watch.private_mb,
            others_s=watch.others_s,
            before=before,
            after=_at_rest(server),
            visits=site.visits,
            flaws=site.flaws,
            log=server.logged(),
        )


def outcomes(course: Course) -> list[Outcome]:
    """What must hold, and whether it did."""
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
            "every answer as it must be",
            f"{len(course.visits)} requests, {statuses[429]} refused with 429; {course.flaws.total()} flaws",
            not course.flaws,
        ),
        Outcome("5xx: none", f"{n_5xx}", not n_5xx),
        Outcome("ERROR or traceback in the log: none", f"{n_complaints}", not n_complaints),
    ]


def complaints(log: str) -> list[str]:
    """The log's lines that should not be there."""
    return [line for line in log.splitlines() if re.search(r"\b(ERROR|CRITICAL)\b|Traceback", line)]


def clients(course: Course) -> str:
    """Who came, and what they got."""
    rows = []
    for name in dict.fromkeys(visit.client for visit in course.visits):
        visits = [visit for visit in course.visits if visit.client == name]
        answers = Counter("-" if visit.status is None else str(visit.status) for visit in visits)
        served_ms = [1000 * visit.latency_s for visit in visits if visit.status == 200]
        told = ", ".join(f"{n} x {status}" for status, n in sorted(answers.items()))
        rows.append([name, told, *(report.number(percentile(served_ms, percent)) for percent in (50, 99))])
    return report.table(("client", "answers", "p50 ms of 200", "p99 ms"), sorted(rows))


def _growth(course: Course) -> Outcome:
    limit_mb = MAX_GROWTH_MB if course.duration_s >= LONG_S else MAX_GROWTH_OF_SHORT_RUN_MB
    target = f"private memory of each worker, after the warm-up: less than {limit_mb} MB more"
    told, grown = [], []
    for samples in course.private_mb.values():
        early, late = ([mb for at_s, mb in samples if span.holds(at_s)] for span in (course.early, course.late))
        if not early or not late:
            return Outcome(target, "not seen to the end", met=False)
        told.append(f"{median(early):.1f} to {median(late):.1f}")
        grown.append(median(late) - median(early))
    return Outcome(target, f"{', '.join(told)} MB", max(grown) < limit_mb)


def _same_descriptors(course: Course) -> Outcome:
    before, after = (_each(counts, "descriptors") for counts in (course.before, course.after))
    return Outcome("descriptors of master and workers, at rest: as before", _changes(before, after), before == after)


def _same_threads(course: Course) -> Outcome:
    before, after = (_each(counts, "threads") for counts in (course.before, course.after))
    # A pool starts a thread when all that it has are at work, which the warm-up may not have seen.
    master = next(iter(before))
    most = {pid: n if pid == master else max(n, WORKER_THREADS) for pid, n in before.items()}
    met = before.keys() == after.keys() and all(before[pid] <= n <= most[pid] for pid, n in after.items())
    target = f"threads of master and workers, at rest: as before, or the {WORKER_THREADS} that a worker may start"
    return Outcome(target, _changes(before, after), met)


def _each(counts: dict[int, Counts], what: str) -> dict[int, int]:
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
        return Outcome(target, "none was answered", met=False)
    middle_ms, last_ms = p99s
    middle_cores, last_cores = (_free_cores(course, span) for span in (course.middle, course.last))
    limit_ms = MAX_RISE * middle_ms * max(1, middle_cores / last_cores) + MAX_RISE_MS
    told = f"{middle_ms:.0f} to {last_ms:.0f} ms; others left {middle_cores:.1f} and {last_cores:.1f} cores"
    return Outcome(target, told, last_ms <= limit_ms)


def _free_cores(course: Course, span: Span) -> float:
    """What other work left of the machine; not less than a tenth of a core, which one always gets."""
    (start_s, before_s), *_, (end_s, after_s) = [each for each in course.others_s if span.holds(each[0])]
    return max(0.1, os.cpu_count() - (after_s - before_s) / (end_s - start_s))


def _known(folder: Path) -> dict[str, list[Known]]:
    """Texts by length, with the vectors that they must get."""
    shelf = Shelf()
    texts = {kind: [shelf.take(kind) for _ in range(n)] for kind, n in _N_KNOWN.items()}
    texts["endless"] = [" ".join(texts["long"][n : n + 3]) for n in range(8)]
    vectors = iter(reference.vectors(folder, [text for kind in texts.values() for text in kind]))
    return {kind: [Known(text, next(vectors)) for text in each] for kind, each in texts.items()}


def _at_rest(server: Server) -> dict[int, Counts]:
    """What the processes have open once nobody is connected and nothing changes, or after _SETTLING_S if it goes on."""
    deadline = time.monotonic() + _SETTLING_S
    counts, since = _counts(server), time.monotonic()
    while time.monotonic() < min(deadline, since + _SETTLED_S):
        time.sleep(0.1)
        now = _counts(server)
        if now != counts or _is_connected(server):
            counts, since = now, time.monotonic()
    return counts


def _counts(server: Server) -> dict[int, Counts]:
    found = {}
    for process in (psutil.Process(server.process.pid), *server.computing()):
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process.pid] = Counts(process.num_fds(), process.num_threads())
    return found


def _is_connected(server: Server) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return any(
            connection.status != psutil.CONN_LISTEN
            for worker in server.computing()
            for connection in worker.net_connections("tcp")
        )
    return True


class _Watch:
    """Looks once a second at the private memory of the workers that there are now, and at what others compute."""

    def __init__(self, server: Server) -> None:
        self._workers = server.computing()
        self._others = machine.Others()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.private_mb: dict[int, list[tuple[float, float]]] = {worker.pid: [] for worker in self._workers}
        self.others_s: list[tuple[float, float]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(1):
            self.others_s.append((time.monotonic(), self._others.used_s()))
            for worker in self._workers:
                with contextlib.suppress(OSError):  # it is gone; the verdict says so
                    self.private_mb[worker.pid].append((time.monotonic(), *machine.private_mib([worker])))
