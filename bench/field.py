"""Starts all contestants: the service, full packs of its own backend, and the peers of `peers.py`."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench import peers, servers
from bench.contestants import OURS, PRECISIONS, Contestant, Packs, Served
from bench.environments import UnavailableError
from bench.peers import Starting, Subject
from bench.workloads import LEGACY, ONNX_RUNTIME, PACKS, SERVICE
from embedding_api.machine import cores

# infinity's author calls this line legacy since version 3, which has no package for Python.
CONTESTANTS = (
    *(f"{SERVICE} {precision}" for precision in PRECISIONS),
    ONNX_RUNTIME,
    "TEI",
    "llama.cpp f16",
    "llama.cpp Q8_0",
    f"{LEGACY} 0.0.78",
    "Flask",
    *(f"{PACKS} {precision}" for precision in PRECISIONS),
)


class Field:
    """Starts contestants. `stack` stops them.

    Each service starts alone, because it measures the machine's speed at its start, and derives from it how much may
    wait. All others start at once.

    Attributes:
        left_out: Contestants that cannot run, with the reason.
    """

    def __init__(self, stack: contextlib.ExitStack, model: str, folder: Path, window: int | None) -> None:
        self._subject = Subject(stack, model, folder, window)
        self.left_out: dict[str, str] = {}

    def enter(self, names: Sequence[str]) -> list[Contestant]:
        """Start the contestants of these names, and return those that run."""
        field = [self._waited(name, self._begun(name)) for name in names if name.startswith(SERVICE)]
        begun = [(name, self._begun(name)) for name in names if not name.startswith(SERVICE)]
        field += [self._waited(name, waiting) for name, waiting in begun]
        return [each for each in field if each is not None]

    def _waited(self, name: str, waiting: Iterator[Contestant]) -> Contestant | None:
        """Return the contestant once it is ready; None if it cannot run."""
        try:
            return next(waiting)
        except (RuntimeError, OSError) as error:
            self.left_out[name] = str(error)
            return None

    def _begun(self, name: str) -> Iterator[Contestant]:
        """Return an iterator that has started processes, and yields the contestant once they are ready."""
        kind = next(kind for kind in _STARTS if name.startswith(kind))
        generator = _STARTS[kind](self._subject, name, name.removeprefix(kind).strip())
        try:
            next(generator)  # each generator yields None once its processes are started
        except (RuntimeError, OSError) as error:
            return _raising(error)
        return (contestant for contestant in generator if contestant is not None)


def service(subject: Subject, name: str, precision: str) -> Starting:
    """Start the service as it is deployed."""
    command = [sys.executable, "-m", "gunicorn"]
    start = servers.start(name, command, OURS | {"PRECISION": precision}, n_workers=cores.count())
    server = subject.stack.enter_context(start)
    yield None
    server.wait("/health/ready")
    served = json.loads(server.wait("/v1/models"))["data"][0]
    if served["precision"] != precision:
        raise UnavailableError(f"asked for PRECISION={precision}, it serves {served['precision']}")
    lowest = 0.98 if precision == "int8" else 0.999
    yield Contestant(name, [Served(server, subject.model, f"{served['backend']}")], lowest)


def full_packs(subject: Subject, name: str, precision: str) -> Starting:
    """Start the service's own backend in a process for each core."""
    variables = {"PRECISION": precision, "WORKERS": str(cores.count())}
    process = subject.stack.enter_context(servers.program([sys.executable, "-m", "bench.packs"], variables))
    yield None
    loaded = servers.first_line(process, "bench.packs")
    if loaded["precision"] != precision:
        raise UnavailableError(f"asked for PRECISION={precision}, it computes in {loaded['precision']}")
    yield Contestant(name, [Packs(process)], is_server=False)


def _raising(error: Exception) -> Iterator[Contestant]:
    """Return an iterator whose first step raises, so that a failed start is reported where it is waited for."""
    raise error
    yield


_STARTS: dict[str, Callable[[Subject, str, str], Starting]] = {
    SERVICE: service,
    PACKS: full_packs,
    ONNX_RUNTIME: peers.onnx_runtime,
    "TEI": peers.tei,
    "llama.cpp": peers.llama_cpp,
    LEGACY: peers.infinity,
    "Flask": peers.flask,
}
