"""One run of the benchmark: starts the contestants, checks their vectors, and measures each part in turn."""

import contextlib
import math
import subprocess
import time
from collections.abc import Iterator, Sequence

from bench import interference, lone, machine, measure, memory, quality, reference, spread, targets, workloads
from bench.contestants import Contestant
from bench.field import Field
from bench.report import Results
from bench.table import number
from bench.texts import Shelf
from bench.workloads import TokenCount
from embedding_api.engine.models import sources
from embedding_api.engine.models.checksums import Checksums
from embedding_api.settings import Settings

# Parts besides the workloads, as the command line names them.
SPREAD, BESIDE, QUALITY, LARGE = PARTS = ("spread", "beside", "quality", "large")

# Lengths of the probe texts. Texts beyond the window reveal a contestant that reads more or less than the window.
_PROBE = ("short", "passage", "long", "long", "short")


def everything(results: Results, settings: Settings, names: Sequence[str], wanted: str) -> None:
    """Measure the contestants of these names, and fill in the results.

    Args:
        results: Results to fill in.
        settings: The service's settings; their first model is served.
        names: Names of contestants.
        wanted: Text in the names of the workloads and parts to measure; empty for all.
    """
    clock = _Clock()
    others = machine.Others()
    spec = settings.supported_models[0]
    folder = sources.locate(spec, settings, Checksums())
    n_tokens = TokenCount(folder)
    shelf = Shelf(cut=n_tokens.cut)
    probe = [shelf.text(kind) for kind in _PROBE]
    expected = reference.vectors(folder, probe)
    is_wanted = any(wanted in each for each in (*(each.name for each in workloads.ALL), SPREAD, BESIDE, QUALITY))
    with contextlib.ExitStack() as stack:
        starter = Field(stack, spec.name, folder, workloads.window(folder))
        field = [
            each
            for each in starter.enter(names if is_wanted else [])
            if _is_correct(each, probe, expected, n_tokens, results)
        ]
        results.left_out |= starter.left_out
        print_left_out(results.left_out)
        results.circumstances["idle contestants"] = f"{machine.idle_cores():.2f} cores"
        clock.print(f"{', '.join(each.name for each in field)} are ready")
        _measure_field(results, settings, field, shelf, n_tokens, wanted, clock)
    with _part(LARGE, wanted, results, clock) as is_wanted:
        if is_wanted and any(name.startswith(workloads.SERVICE) for name in names):
            results.lone_texts = lone.measure(results.pace, results.left_out)
    results.circumstances["other work"] = f"{others.cores():.2f} cores on average while this was measured"
    results.circumstances["took"] = f"{clock.elapsed_s():.0f} s"
    results.outcomes = [
        *(each for each in targets.outcomes(results.rows) if each.met is not None or not wanted),
        *targets.lone_text(results.lone_texts),
        *targets.spread(results.spreads),
        *targets.beside_bulk(results.interferences),
        *targets.quality(results.qualities),
    ]


def private_memory(settings: Settings, names: Sequence[str]) -> dict[str, list[float]]:
    """Return the private MiB of each worker of the contestants of these names, after many requests."""
    spec = settings.supported_models[0]
    folder = sources.locate(spec, settings, Checksums())
    shelf = Shelf()
    measured = {}
    for name in names:  # one after another, so that each has the whole machine
        with contextlib.ExitStack() as stack:
            starter = Field(stack, spec.name, folder, workloads.window(folder))
            for contestant in starter.enter([name]):
                measured[name] = memory.after_requests(contestant, shelf)
        print_left_out(starter.left_out)
    return measured


def print_left_out(left_out: dict[str, str]) -> None:
    """Print a line for each contestant that does not take part."""
    for what, why in left_out.items():
        print(f"left out: {what}: {why}", flush=True)


class _Clock:
    """Prints how far the run is."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def elapsed_s(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._started

    def print(self, message: str) -> None:
        """Print a message with the seconds since the start."""
        print(f"{self.elapsed_s():.0f} s: {message}", flush=True)


def _measure_field(
    results: Results,
    settings: Settings,
    field: Sequence[Contestant],
    shelf: Shelf,
    n_tokens: TokenCount,
    wanted: str,
    clock: _Clock,
) -> None:
    """Measure everything that needs the running contestants."""
    for workload in workloads.ALL:
        if wanted not in workload.name:
            continue
        rows = measure.measure(workload, field, shelf, n_tokens, results.pace, results.left_out)
        results.rows += rows
        rates = ", ".join(f"{row.contestant} {number(row.texts_per_s)}" for row in rows)
        clock.print(f"{workload.name}: texts/s: {rates}")
    with _part(SPREAD, wanted, results, clock) as is_wanted:
        if is_wanted:
            results.spreads = spread.measure(field, shelf, results.pace)
    with _part(BESIDE, wanted, results, clock) as is_wanted:
        if is_wanted:
            results.interferences = interference.measure(field, shelf, results.pace)
    with _part(QUALITY, wanted, results, clock) as is_wanted:
        if is_wanted:
            n_pairs = round(quality.N_PAIRS * results.pace.share)
            results.qualities = quality.measure(field, settings.calibration_texts or quality.CALIBRATION, n_pairs)
    results.private_mb = memory.now(field)


@contextlib.contextmanager
def _part(name: str, wanted: str, results: Results, clock: _Clock) -> Iterator[bool]:
    """Give True if a part is wanted. If it fails, it is left out, and the other parts go on."""
    try:
        yield wanted in name
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        results.left_out[name] = str(error)
        clock.print(f"left out: {name}: {error}")
    else:
        if wanted in name:
            clock.print(f"{name} is measured")


def _is_correct(
    contestant: Contestant,
    probe: Sequence[str],
    expected: Sequence[Sequence[float]],
    n_tokens: TokenCount,
    results: Results,
) -> bool:
    """Return True if every variant of a contestant gives the reference's vectors; only then it is measured.

    A contestant that does not cut texts is only asked for those within the window.
    """
    asked = [pair for pair in zip(probe, expected, strict=True) if contestant.cuts or n_tokens.cut(pair[0]) == pair[0]]
    lowest = 1.0
    for variant in contestant.variants:
        try:
            vectors = variant.vectors([text for text, _ in asked])
        except RuntimeError as error:
            results.left_out[contestant.name] = str(error)
            return False
        if vectors is not None:
            cosines = [_cosine(ours, theirs) for ours, (_, theirs) in zip(vectors, asked, strict=True)]
            lowest = results.cosines[contestant.name] = min(lowest, *cosines)
    if lowest < contestant.lowest_cosine:
        results.left_out[contestant.name] = (
            f"its vectors have a cosine of {lowest:.5f} to those of SentenceTransformer.encode"
        )
        return False
    return True


def _cosine(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the cosine of a vector to one of length 1."""
    return sum(one * other for one, other in zip(ours, theirs, strict=True)) / math.hypot(*ours)
