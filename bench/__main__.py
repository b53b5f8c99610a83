"""`python -m bench`: measures the service and its alternatives on this machine, side by side. See README.md."""

import argparse
import signal
import sys
from pathlib import Path

from bench import large, machine, measure, memory, pairs, report, run, soak, targets
from bench.field import CONTESTANTS
from bench.outcome import as_table
from bench.report import Results
from bench.servers import ROOT
from embedding_api.settings import load_settings


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
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it runs, not for results")
    parser.add_argument("--only", default="", help="contestants that begin with one of these words, comma-separated")
    parser.add_argument("--workload", default="", help=f"workloads that contain this text; also {', '.join(run.PARTS)}")
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
        services = [name for name in names if name.startswith("service")]
        print(f"\nafter {memory.N_REQUESTS} requests of 32 mixed texts a worker:")
        print(as_table(targets.private_memory(run.private_memory(settings, services))))
        return
    run.everything(results, settings, names, options.workload)
    print("\n" + report.markdown(results))
    if options.quick or options.only or options.workload:
        print("only a part of the benchmark ran: no file was written")
    else:
        print(*report.write(results), sep="\n")


if __name__ == "__main__":
    main()
