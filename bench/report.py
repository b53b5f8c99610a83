"""Tables of the measurements, as Markdown and as JSON."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench import workloads
from bench.contestants import PEER, PEER_AT_ITS_BEST
from bench.interference import Interference
from bench.measure import Pace, Row
from bench.servers import ROOT
from bench.targets import Outcome, ratios

RESULTS = ROOT / "bench" / "results"

_HOW_TO_READ = """\
Rates are medians of {n_rounds} rounds. In each round all contestants get the same new texts, in turn. p50 and p99 are
over the n requests of all rounds; p99 is the slowest request if n is below 100. Ratios are of texts/s: the median of
the rounds' ratios (lowest to highest). Tokens are counted as the service counts them, for all. Of a contestant with
several settings, the table shows those that were the fastest in the workload."""


@dataclasses.dataclass
class Results:
    """Everything that a run measured.

    Attributes:
        circumstances: Conditions of the measurement.
        cosines: For each contestant the lowest cosine of its probe vectors to the reference's.
        private_mb: For each contestant the private memory of each computing process, after the run.
        left_out: What was not measured, with the reason.
    """

    circumstances: dict[str, str]
    pace: Pace
    rows: list[Row] = dataclasses.field(default_factory=list)
    interferences: list[Interference] = dataclasses.field(default_factory=list)
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    cosines: dict[str, float] = dataclasses.field(default_factory=dict)
    private_mb: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)


def write(results: Results) -> tuple[Path, Path]:
    """Write both forms under the commit's name, and return their paths."""
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / results.circumstances["commit"]
    as_text, as_data = stem.with_suffix(".md"), stem.with_suffix(".json")
    as_text.write_text(markdown(results))
    write_data(results, as_data)
    return as_text, as_data


def write_data(results: Results, path: Path) -> None:
    """Write the results as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(results), indent=1) + "\n")


def markdown(results: Results) -> str:
    """Return the whole report."""
    parts = [
        f"# Measured at {results.circumstances['commit']}",
        "\n".join(f"- {name}: {value}" for name, value in results.circumstances.items()),
        *_section("Targets", targets(results.outcomes) if results.outcomes else ""),
        *_section("Throughput and latency", main_table(results.rows)),
        _HOW_TO_READ.format(n_rounds=results.pace.n_rounds) if results.rows else "",
        *_section("One short text, by connections", concurrency(results.rows)),
        *_section("Copies among the texts of a request", copies(results.rows)),
        *_section("Short texts beside bulk work", interference(results.interferences)),
        *_section("Vectors and memory", vectors_and_memory(results)),
        client(results.rows),
    ]
    if results.left_out:
        parts += ["## Left out", "\n".join(f"- {what}: {why}" for what, why in results.left_out.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def main_table(rows: Sequence[Row]) -> str:
    """Return the table of all rows that are not for the plot alone."""
    peers, best = ({row.workload: row for row in rows if row.contestant == name} for name in (PEER, PEER_AT_ITS_BEST))
    names = {workload.name for workload in workloads.ALL if workload.is_main}
    header = (
        "workload", "contestant", "requests/s", "texts/s", "tokens/s", "p50 ms", "p99 ms", "n",
        f"against {PEER}", "in batches of 8", "settings",
    )  # fmt: skip
    return table(
        header,
        [
            [
                row.workload,
                row.contestant,
                number(row.requests_per_s),
                number(row.texts_per_s),
                number(row.tokens_per_s),
                number(row.p50_ms),
                number(row.p99_ms),
                str(row.n_requests),
                against(row, peers.get(row.workload)),
                against(row, best.get(row.workload)),
                row.settings,
            ]
            for row in rows
            if row.workload in names
        ],
    )


def against(row: Row, peer: Row | None) -> str:
    """Return a row's ratio to the peer's, with its range over rounds."""
    if peer is None:
        return ""
    if row is peer:
        return "1"
    of_rounds = ratios(row, peer)
    return f"{median(of_rounds):.2f} ({min(of_rounds):.2f} to {max(of_rounds):.2f})"


def concurrency(rows: Sequence[Row]) -> str:
    """Return the table of requests per second and p99 of one short text, by number of connections."""
    names = [workload.name for workload in workloads.SHORT]
    found = {(row.contestant, row.n_connections): row for row in rows if row.workload in names}
    numbers = sorted({n for _, n in found})
    if len(numbers) < 2:
        return ""
    return table(
        ("contestant: requests/s, p99 ms", *map(str, numbers)),
        [
            [contestant]
            + [
                f"{number(row.requests_per_s)}, {number(row.p99_ms)}" if (row := found.get((contestant, n))) else ""
                for n in numbers
            ]
            for contestant in dict.fromkeys(contestant for contestant, _ in found)
        ],
    )


def copies(rows: Sequence[Row]) -> str:
    """Return the table of the gain from equal texts in a request."""
    different = {row.contestant: row for row in rows if row.workload == workloads.MIXED_X_4.name}
    return table(
        ("contestant", "texts/s, all different", "texts/s, a quarter different", "gain"),
        [
            [
                row.contestant,
                number(different[row.contestant].texts_per_s),
                number(row.texts_per_s),
                f"{row.texts_per_s / different[row.contestant].texts_per_s:.2f}",
            ]
            for row in rows
            if row.workload == workloads.COPIES.name and row.contestant in different
        ],
    )


def interference(measured: Sequence[Interference]) -> str:
    """Return the table of short texts on an idle server and beside bulk work."""
    return table(
        ("contestant", "idle p50, p99 ms", "one full window ms", "loaded p50, p99 ms", "bound ms", "n", "bulk texts/s"),
        [
            [
                each.contestant,
                f"{number(each.idle_p50_ms)}, {number(each.idle_p99_ms)}",
                number(each.long_ms),
                f"{number(each.loaded_p50_ms)}, {number(each.loaded_p99_ms)}",
                number(each.bound_ms),
                str(each.n_loaded),
                number(each.bulk_texts_per_s),
            ]
            for each in measured
        ],
    )


def vectors_and_memory(results: Results) -> str:
    """Return the table of lowest cosines and private memory."""
    return table(
        ("contestant", "lowest cosine to encode", "private MB of each process"),
        [
            [name, f"{results.cosines[name]:.5f}" if name in results.cosines else "", ", ".join(map(number, values))]
            for name, values in results.private_mb.items()
        ],
    )


def client(rows: Sequence[Row]) -> str:
    """Return a sentence with the driver's processor time per request. The contestants cannot use that time."""
    costs: dict[str, list[float]] = {}
    for row in rows:
        if row.client_ms is not None:
            costs.setdefault(row.workload, []).append(row.client_ms)
    shown = "; ".join(f"{name} {median(values):.2f} ms" for name, values in costs.items())
    return f"The client's own processor time for each request, on the same cores: {shown}." if shown else ""


def targets(outcomes: Sequence[Outcome]) -> str:
    """Return the table of targets and their outcomes."""
    words = {True: "met", False: "NOT met", None: ""}
    return table(("target", "measured", ""), [[each.target, each.measured, words[each.met]] for each in outcomes])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, aligned for reading in a terminal; empty if there are no rows."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def number(value: float | None) -> str:
    """Return a number with three significant digits; empty for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def load(path: Path) -> list[Row]:
    """Return the rows of a written run, to draw it again."""
    return [Row(**row) for row in json.loads(path.read_text())["rows"]]


def _section(title: str, contents: str) -> list[str]:
    return [f"## {title}", contents] if contents else []
