"""`python -m bench large`: measures how workers share a model of bge-m3's size, and the memory of the whole service."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from bench import machine, servers
from bench.contestants import OURS, Served
from bench.environments import ENVIRONMENTS
from bench.outcome import Outcome, as_table
from bench.servers import ROOT, Server
from bench.texts import Shelf
from bench.workloads import MIXED

N_WORKERS = 2
MAX_PRIVATE_MB, MAX_ANONYMOUS_OF_WEIGHTS = 80, 1.3

# Layers, hidden and intermediate size, as in `large_model.py`, which this module does not import because it imports
# torch. A layer has four square matrices and two of the intermediate size, each with its bias, and two layer norms.
_LAYERS, _DIM, _INTERMEDIATE = 24, 1024, 4096
N_ENCODER_WEIGHTS = _LAYERS * (4 * _DIM * (_DIM + 1) + 2 * _DIM * _INTERMEDIATE + _INTERMEDIATE + _DIM + 4 * _DIM)
_BYTES = {"float32": 4, "bfloat16": 2}

# Half of a mixed batch of 32, so that a request takes seconds and not minutes.
_N_REQUESTS, _TEXTS = 12, MIXED[:16]


class Footprint(NamedTuple):
    """Memory in MB (2**20 bytes).

    Attributes:
        private: Private memory of each worker.
        anonymous: Anonymous memory of master and workers together; shared pages count once.
        file_backed: Memory mapped from the converted model's files, likewise; without libraries.
    """

    private: list[float]
    anonymous: float
    file_backed: float


def footprint(master: psutil.Process, cache: Path) -> Footprint:
    """Return the memory of a master and its workers.

    A page that n processes share counts as 1/n in each (Pss), so that it counts once in the sum over all of them. If
    other processes on this machine map it as well, as with libraries, their part is missing.
    """
    workers = master.children()
    family = [process.pid for process in (master, *workers)]
    return Footprint(
        private=machine.private_mib(workers),
        anonymous=sum(machine.memory_kb(pid, "Pss_Anon") for pid in family) / 1024,
        file_backed=sum(machine.mapped_kb(pid, cache) for pid in family) / 1024,
    )


def model() -> Path:
    """Return the folder of the model; make it if necessary."""
    folder = ENVIRONMENTS / "large-model"
    if not (folder / "modules.json").exists():
        print(f"making {folder.relative_to(ROOT)}, 2.3 GB; remove it when it is no longer needed ...", flush=True)
        folder.parent.mkdir(exist_ok=True)
        subprocess.run([sys.executable, "-m", "bench.large_model", str(folder)], cwd=ROOT, check=True)
    return folder


def service(folder: Path, cache: Path, precision: str, n_workers: int) -> dict[str, str]:
    """Return the settings of a service of the model, whose name is `large`."""
    return OURS | {
        "SUPPORTED_MODELS": f"large={folder}",
        "CACHE_DIR": str(cache),
        "PRECISION": precision,
        "WORKERS": str(n_workers),
        "INFERENCE_TIMEOUT_S": "600",
    }


def wait(server: Server, precision: str) -> None:
    """Wait until the service is ready.

    Raises:
        RuntimeError: The service does not start, or serves another precision.
    """
    server.wait("/health/ready")
    if f'"{precision}"'.encode() not in server.wait("/v1/models"):
        raise RuntimeError(f"asked for PRECISION={precision}, it serves another")


def measure(folder: Path, precision: str, cache: Path) -> Footprint:
    """Serve the model with two workers, send requests, and return the memory.

    Raises:
        RuntimeError: The service does not start, fails, or serves another precision.
    """
    environment = service(folder, cache, precision, N_WORKERS)
    command = [sys.executable, "-m", "gunicorn"]
    with servers.start(f"large, {precision}", command, environment, n_workers=N_WORKERS) as server:
        wait(server, precision)
        shelf = Shelf()
        requests = [[shelf.text(kind) for kind in _TEXTS] for _ in range(_N_REQUESTS)]
        Served(server, "large").run(requests, 2 * N_WORKERS)
        return footprint(psutil.Process(server.process.pid), cache)


def outcomes(precision: str, measured: Footprint, ir_mb: float | None) -> Sequence[Outcome]:
    """Return the targets at this size and their outcomes.

    Args:
        precision: Precision that was served.
        measured: Memory of master and workers.
        ir_mb: Size of the converted model in the cache; None if there is none.
    """
    bound_mb = MAX_ANONYMOUS_OF_WEIGHTS * N_ENCODER_WEIGHTS * _BYTES[precision] / 2**20
    found = [
        Outcome(
            f"{precision}: private memory of a worker, at most {MAX_PRIVATE_MB} MB",
            " and ".join(f"{value:.0f}" for value in measured.private) + " MB",
            max(measured.private) <= MAX_PRIVATE_MB,
        ),
        Outcome(
            f"{precision}: anonymous memory of master and workers, at most {MAX_ANONYMOUS_OF_WEIGHTS} x the encoder",
            f"{measured.anonymous:.0f} MB of {bound_mb:.0f} MB",
            measured.anonymous <= bound_mb,
        ),
    ]
    target = f"{precision}: file-backed memory, at most the converted model once"
    if ir_mb is None:
        return [*found, Outcome(target, f"{measured.file_backed:.0f} MB; no converted model was found", None)]
    return [*found, Outcome(target, f"{measured.file_backed:.0f} MB of {ir_mb:.0f} MB", measured.file_backed <= ir_mb)]


def main() -> None:
    """Make the model, measure at each precision, and print the targets."""
    folder = model()
    cache = ENVIRONMENTS / "large-cache"
    found: list[Outcome] = []
    for precision in _BYTES:
        try:
            measured = measure(folder, precision, cache)
        except RuntimeError as error:
            print(f"left out: {precision}: {error}")
            continue
        # Size of the weights plus the graph.
        sizes = [file.stat().st_size + file.with_suffix(".xml").stat().st_size for file in cache.rglob("model.bin")]
        found += outcomes(precision, measured, max(sizes) / 2**20 if sizes else None)
    print(as_table(found))
