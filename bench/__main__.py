"""`python -m bench`: a table of what was measured, here and now, and how. It claims nothing beyond that."""

import contextlib
import dataclasses
import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil

from bench import contestants
from bench.contestants import ROOT, Contestant
from bench.drive import Round
from bench.texts import MIXED, Shelf
from embedding_api import cores
from embedding_api.config import Settings, load_settings
from embedding_api.engine import sources

N_ROUNDS = 3


class Workload(NamedTuple):
    """What is asked.

    Attributes:
        name: As the table shows it.
        kinds: Of the texts in one request.
        n_connections: From how many connections at once.
        n_requests: In one round.
    """

    name: str
    kinds: Sequence[str]
    n_connections: int
    n_requests: int


WORKLOADS = (
    Workload("1 short text x 1 connection", ["short"], 1, 80),
    Workload("1 short text x 8 connections", ["short"], 8, 100),
    Workload("32 mixed texts x 1 connection", MIXED, 1, 2),
    Workload("32 mixed texts x 4 connections", MIXED, 4, 4),
)

COLUMNS = "{:<30}  {:<10}  {:>10}  {:>7}  {:>8}  {:>8}  {:>8}  {:>4}  {}"
HEADER = ("workload", "contestant", "requests/s", "texts/s", "tokens/s", "p50 ms", "p99 ms", "n", "ratio")

FOOTNOTES = f"""\
requests/s, texts/s, tokens/s: medians of {N_ROUNDS} rounds after a short one to get warm. In each round all contestants
answer the same new texts, in turn. p50, p99: of the n requests of all rounds; p99 is the slowest where n is below 100.
ratio: texts/s over those of encode in the same round, median (least-most).
service: over HTTP; its client is on the same cores. encode: SentenceTransformer.encode on one request after the other,
in one process of its own, no HTTP, with the threads that torch takes by default; connections mean nothing to it.
Where other work takes cores, all numbers mean less, and ratios flatter the service: encode's threads wait for each
other, so one that is held up holds up all."""


def measure(workload: Workload, field: Sequence[Contestant], shelf: Shelf) -> list[list[Round]]:
    """Lets all contestants answer the same new texts in each round, in turn; who begins changes.

    Returns:
        For each contestant its rounds, without the first one, in which they get warm.

    Raises:
        RuntimeError: They did not read the same number of tokens, so that their times cannot be compared.
    """
    results: list[list[Round]] = [[] for _ in field]
    for number in range(1 + N_ROUNDS):
        n_requests = workload.n_requests if number else workload.n_connections
        requests = [[shelf.take(kind) for kind in workload.kinds] for _ in range(n_requests)]
        in_turn = list(zip(field, results, strict=True))
        for contestant, rounds in in_turn[:: 1 if number % 2 else -1]:
            rounds.append(contestant.run(requests, workload.n_connections))
        n_tokens = [rounds[-1].n_tokens for rounds in results]
        if len(set(n_tokens)) > 1:
            raise RuntimeError(f"{workload.name}: the contestants read {n_tokens} tokens in the same texts")
    return [rounds[1:] for rounds in results]


def line(workload: Workload, contestant: Contestant, rounds: Sequence[Round], reference: Sequence[Round]) -> list[str]:
    """The table's line for what a contestant did; the reference did the same requests."""
    requests_per_s = median(workload.n_requests / round_.elapsed_s for round_ in rounds)
    tokens_per_s = median(round_.n_tokens / round_.elapsed_s for round_ in rounds)
    latencies_ms = sorted(1000 * latency_s for round_ in rounds for latency_s in round_.latencies_s)
    ratios = [theirs.elapsed_s / ours.elapsed_s for ours, theirs in zip(rounds, reference, strict=True)]
    return [
        workload.name,
        contestant.name,
        f"{requests_per_s:.1f}",
        f"{requests_per_s * len(workload.kinds):.0f}",
        f"{tokens_per_s:.0f}",
        f"{median(latencies_ms):.1f}",
        f"{latencies_ms[-1 - len(latencies_ms) // 100]:.1f}",
        str(len(latencies_ms)),
        "1" if rounds is reference else f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
    ]


def circumstances(settings: Settings) -> Iterator[str]:
    """Lines on where and how this is measured, one for each thing that could make other numbers come out."""
    yield f"machine   {_cpu()}, {cores.count()} cores usable"
    names = ("torch", "sentence-transformers", "transformers", "tokenizers", "gunicorn", "flask")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    yield f"versions  Python {platform.python_version()}, {versions}"
    changed = [
        f"{field.name.upper()}={getattr(settings, field.name)}"
        for field in dataclasses.fields(settings)
        if not field.metadata["secret"]
        and field.name.upper() not in {*contestants.OUR_SETTINGS, "SUPPORTED_MODELS"}
        and getattr(settings, field.name) != field.metadata["parse"](field.metadata["default"])
    ]
    yield f"settings  model {settings.supported_models[0].name}, {', '.join([*changed, 'all else default'])}"
    yield f"commit    {_commit()}"


class Others:
    """What other work takes from the machine while this one is measured: no line of a table is worth more than this."""

    def __init__(self) -> None:
        self._started, self._used_s = time.monotonic(), _used_by_others_s()

    def cores(self) -> float:
        """How many cores were busy for others, on average since the start."""
        return max(0.0, _used_by_others_s() - self._used_s) / (time.monotonic() - self._started)


def _used_by_others_s() -> float:
    total = psutil.cpu_times()
    busy_s = sum(total) - total.idle - getattr(total, "iowait", 0) - getattr(total, "guest", 0)
    us = psutil.Process()
    ours = [process.cpu_times() for process in (us, *us.children(recursive=True))]
    return busy_s - sum(times.user + times.system for times in ours)


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for entry in Path("/proc/cpuinfo").read_text().splitlines():
            if entry.startswith("model name"):
                return entry.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError):
        return (
            subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
        )
    return "unknown"


def main() -> None:
    """Measures and prints."""
    settings = load_settings(ROOT / ".env")
    spec = settings.supported_models[0]
    print(*circumstances(settings), sep="\n", flush=True)
    shelf = Shelf()
    others = Others()
    with contestants.service(spec.name) as service, contestants.reference(sources.locate(spec, settings)) as encode:
        field: list[Contestant] = [service, encode]
        print("\n" + COLUMNS.format(*HEADER))
        for workload in WORKLOADS:
            results = measure(workload, field, shelf)
            for contestant, rounds in zip(field, results, strict=True):
                print(COLUMNS.format(*line(workload, contestant, rounds, results[-1])), flush=True)
        memory = [f"{each.name} {' + '.join(f'{mib:.0f}' for mib in each.private_mib())}" for each in field]
        n_others = others.cores()
    print(f"\nprivate memory in MiB afterwards, of each process that computes: {', '.join(memory)}")
    print(f"cores that other work on this machine took meanwhile: {n_others:.1f}")
    print(FOOTNOTES)


if __name__ == "__main__":
    main()
