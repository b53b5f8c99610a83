"""`python -m bench soak`: runs clients of all kinds for a while, and checks that the service stays as it was.

The first minute, or third, is the warm-up: workers write to pages that they shared with the master, allocators find
their size, threads start. Then all clients leave, descriptors and threads are counted, and all clients come again.
"""

import contextlib
import sys
import threading
import time
from pathlib import Path
from typing import Self

import psutil

from bench import crowd, machine, reference, servers, site
from bench.contestants import OURS
from bench.outcome import as_table
from bench.servers import ROOT, Server
from bench.site import Known, Site
from bench.texts import Shelf
from bench.verdict import THREADS, Counts, Course, Span, clients, complaints, outcomes
from embedding_api.engine.models import sources
from embedding_api.engine.models.checksums import Checksums
from embedding_api.settings import Settings, load_settings

# The first flood fills all threads, the second one the queue.
N_WORKERS, MAX_QUEUED_TOKENS = 2, 6000
_SERVICE = OURS | {
    "API_KEY_SECRET": site.KEY,
    "WORKERS": str(N_WORKERS),
    "THREADS": str(THREADS),
    "MAX_QUEUED_TOKENS": str(MAX_QUEUED_TOKENS),
    "MAX_BODY_BYTES": str(site.MAX_BODY_BYTES),
    "CLIENT_TIMEOUT_S": "3",
    "DRAIN_S": "0",
    "PRECISION": "float32",
    "TRUNCATE": "true",
    "LOG_LEVEL": "INFO",
    "LOG_FORMAT": "text",
}

# Seconds of the warm-up, if the soak is not shorter than three times that.
WARM_S = 60

# Seconds without a change after which processes count as at rest, and the most seconds to wait for that.
_SETTLED_S, _SETTLING_S = 1, 30

_N_KNOWN = {"short": 100, "passage": 40, "long": 16}


def main(duration_s: float) -> None:
    """Run for this long and print the verdict. The exit code is 0 if all targets are met."""
    settings = load_settings(ROOT / ".env")
    print(*(f"{name:<9} {value}" for name, value in machine.circumstances(settings).items()), sep="\n", flush=True)
    course = run(settings, duration_s)
    found = outcomes(course)
    print(f"\n{clients(course)}\n\n{as_table(found)}")
    print(*(f"- {flaw}: {n}" for flaw, n in course.flaws.items()), *complaints(course.log)[:20], sep="\n")
    sys.exit(not all(outcome.met for outcome in found))


def run(settings: Settings, duration_s: float) -> Course:
    """Start the service, run the clients, and return the record."""
    spec = settings.supported_models[0]
    known = _known(sources.locate(spec, settings, Checksums()))
    command = [sys.executable, "-m", "gunicorn"]
    with servers.start("soak", command, _SERVICE, n_workers=N_WORKERS) as server:
        server.wait("/health/ready")
        while len(server.computing()) < N_WORKERS:
            time.sleep(0.1)
        visited = Site(server.address, spec.name, known, n_flood=2 * N_WORKERS * THREADS)
        with _Watch(server) as watch:
            window_s = min(WARM_S, duration_s / 3)
            crowd.run(visited, window_s)
            before = _at_rest(server)
            start = time.monotonic()
            crowd.run(visited, duration_s - window_s)
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
            visits=visited.visits,
            flaws=visited.flaws,
            log=server.logged(),
        )


def _known(folder: Path) -> dict[str, list[Known]]:
    """Return texts by length, with their vectors."""
    shelf = Shelf()
    texts = {kind: [shelf.text(kind) for _ in range(n)] for kind, n in _N_KNOWN.items()}
    texts["endless"] = [" ".join(texts["long"][n : n + 3]) for n in range(8)]
    vectors = iter(reference.vectors(folder, [text for kind in texts.values() for text in kind]))
    return {kind: [Known(text, next(vectors)) for text in each] for kind, each in texts.items()}


def _at_rest(server: Server) -> dict[int, Counts]:
    """Return the counts once nobody is connected and nothing changes, or after _SETTLING_S seconds."""
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
    """Samples once a second the private memory of the present workers and the processor time of other work."""

    def __init__(self, server: Server) -> None:
        self._workers = server.computing()
        self._others = machine.Others()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self.private_mb: dict[int, list[tuple[float, float]]] = {worker.pid: [] for worker in self._workers}
        self.others_s: list[tuple[float, float]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._is_over.wait(1):
            self.others_s.append((time.monotonic(), self._others.used_s()))
            for worker in self._workers:
                with contextlib.suppress(OSError):  # the worker is gone; the verdict reports that
                    self.private_mb[worker.pid].append((time.monotonic(), *machine.private_mib([worker])))
