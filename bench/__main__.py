"""`python -m bench`: measures the service and its alternatives on this machine, side by side. See README.md."""

import argparse
import contextlib
import math
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import (
    interference,
    large,
    machine,
    measure,
    memory,
    pairs,
    plot,
    reference,
    report,
    soak,
    targets,
    workloads,
)
from bench.contestants import PEER, PEER_AT_ITS_BEST, PRECISIONS, Contestant
from bench.field import Field
from bench.report import Results
from bench.servers import ROOT
from bench.texts import Shelf
from embedding_api.engine.models import sources
from embedding_api.engine.models.checksums import Checksums
from embedding_api.settings import Settings, load_settings

CONTESTANTS = (
    *(f"service {precision}" for precision in PRECISIONS),
    "Flask",
    PEER,
    PEER_AT_ITS_BEST,
    "infinity optimum",
    *(f"bare {precision}" for precision in PRECISIONS),
)

# Lengths of the probe texts. Texts beyond the window reveal a contestant that reads more or less than the window.
PROBE = ("short", "passage", "long", "long", "short")


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=("all", "large", "soak", "pairs"),
        default="all",
        help="large: a model of 567M parameters; soak: mixed load for long; pairs: this checkout against another one",
    )
    parser.add_argument("--seconds", type=float, default=1800, help="duration of the soak, best in whole minutes")
    parser.add_argument("--before", type=Path, help="folder of the checkout that pairs compare this one with")
    parser.add_argument("--pairs", type=int, help="pairs of each workload; by default as many as precision needs")
    parser.add_argument("--quick", action="store_true", help="short rounds, to see that it runs; figures mean nothing")
    parser.add_argument("--only", default="", help="contestants that begin with one of these words, comma-separated")
    parser.add_argument("--workload", default="", help="workloads that contain this text; 'beside' is the interference")
    parser.add_argument("--memory", action="store_true", help="only memory after 1,000 requests a worker; takes long")
    return parser


def main() -> None:
    """Read the command line and measure."""
    parser = command_line()
    options = parser.parse_args()
    if (options.what == "pairs") is not (options.before is not None):
        parser.error("pairs needs --before, and only pairs takes it")
    # SIGTERM stops the servers as well, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.what == "large":
        large.main()
        return
    if options.what == "soak":
        soak.main(options.seconds)
        return
    if options.what == "pairs":
        pairs.main(options.before, options.pairs)
        return
    wanted = tuple(options.only.split(","))
    names = [name for name in CONTESTANTS if name.startswith(wanted)]
    settings = load_settings(ROOT / ".env")
    results = Results(machine.circumstances(settings), measure.QUICK if options.quick else measure.Pace())
    print(*(f"{name:<9} {value}" for name, value in results.circumstances.items()), sep="\n", flush=True)
    if options.memory:
        _memory(settings, [name for name in names if name.startswith("service")])
        return
    _measure(results, settings, names, options.workload)
    is_whole = not (options.quick or options.only or options.workload)
    print("\n" + report.markdown(results))
    if is_whole:
        plot.draw(results.rows, f"{results.circumstances['machine']}, commit {results.circumstances['commit']}")
        print(*report.write(results), plot.PICTURE, sep="\n")
    else:
        print("only a part of the benchmark ran: no file was written")


def _measure(results: Results, settings: Settings, names: Sequence[str], wanted: str) -> None:
    spec = settings.supported_models[0]
    folder = sources.locate(spec, settings, Checksums())
    shelf, started = Shelf(), time.monotonic()
    probe = [shelf.text(kind) for kind in PROBE]
    expected = reference.vectors(folder, probe)
    n_tokens = workloads.TokenCount(folder)
    with contextlib.ExitStack() as stack:
        starter = Field(stack, spec.name, folder, workloads.window(folder))
        field = [each for each in starter.enter(names) if _is_correct(each, probe, expected, results)]
        results.left_out |= starter.left_out
        _print_left_out(results.left_out)
        results.circumstances["idle contestants"] = f"{machine.idle_cores():.2f} cores"
        print(f"{time.monotonic() - started:.0f} s: {', '.join(each.name for each in field)} are ready", flush=True)
        others = machine.Others()
        for workload in workloads.ALL:
            if wanted not in workload.name:
                continue
            rows = measure.measure(workload, field, shelf, n_tokens, results.pace, results.left_out)
            results.rows += rows
            rates = ", ".join(f"{row.contestant} {report.number(row.texts_per_s)}" for row in rows)
            print(f"{time.monotonic() - started:.0f} s: {workload.name}: texts/s: {rates}", flush=True)
        if wanted in "short texts beside bulk work":
            results.interferences = interference.measure(field, shelf, results.pace)
        results.private_mb = memory.now(field)
        results.circumstances["other work"] = f"{others.cores():.2f} cores on average while this was measured"
    outcomes = targets.outcomes(results.rows, results.interferences)
    results.outcomes = [each for each in outcomes if each.met is not None or not wanted]
    results.circumstances["took"] = f"{time.monotonic() - started:.0f} s"


def _memory(settings: Settings, names: Sequence[str]) -> None:
    spec = settings.supported_models[0]
    folder = sources.locate(spec, settings, Checksums())
    shelf = Shelf()
    measured = {}
    for name in names:  # one after another, so that each has the whole machine
        with contextlib.ExitStack() as stack:
            starter = Field(stack, spec.name, folder, workloads.window(folder))
            for contestant in starter.enter([name]):
                measured[name] = memory.after_requests(contestant, shelf)
        _print_left_out(starter.left_out)
    print(f"\nafter {memory.N_REQUESTS} requests of 32 mixed texts a worker:")
    print(report.targets(targets.private_memory(measured)))


def _print_left_out(left_out: Mapping[str, str]) -> None:
    for what, why in left_out.items():
        print(f"left out: {what}: {why}", flush=True)


def _is_correct(contestant: Contestant, probe: list[str], expected: list[list[float]], results: Results) -> bool:
    """Return True if every variant of a contestant gives the reference's vectors; only then it is measured."""
    lowest = 1.0
    for variant in contestant.variants:
        vectors = variant.vectors(probe)
        for ours, theirs in zip(vectors or [], expected if vectors else [], strict=True):
            product = sum(one * other for one, other in zip(ours, theirs, strict=True))
            lowest = min(lowest, product / math.hypot(*ours))
        if vectors is not None:
            results.cosines[contestant.name] = lowest
    if lowest < contestant.lowest_cosine:
        results.left_out[contestant.name] = (
            f"its vectors have a cosine of {lowest:.5f} to those of SentenceTransformer.encode"
        )
        return False
    return True


if __name__ == "__main__":
    main()
