"""Tables of the measurements, as Markdown and as JSON."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.interference import Interference
from bench.lone import N_TOKENS, Lone
from bench.measure import Pace, Row
from bench.outcome import Outcome, as_table
from bench.quality import Quality
from bench.servers import ROOT
from bench.spread import EVEN, UNEVEN, Spread
from bench.table import number, ratio, table
from bench.workloads import ONNX_RUNTIME, PACKS

RESULTS = ROOT / "bench" / "results"

_HOW_TO_READ = """\
Rates are medians of {n_rounds} rounds. In each round all contestants get the same new texts, in turn. p50 and p99 are
over the n requests of all rounds; p99 is the slowest request if n is below 100. Ratios are medians of the rounds'
ratios (lowest to highest): of p50 with one connection, and of texts/s with more. In the ratio to full packs, the
client's processor time is subtracted from that of all cores. Tokens are counted as the service counts them, for all. Of
a contestant with several settings, the table shows those that were the fastest in the workload."""


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
    spreads: list[Spread] = dataclasses.field(default_factory=list)
    interferences: list[Interference] = dataclasses.field(default_factory=list)
    qualities: list[Quality] = dataclasses.field(default_factory=list)
    lone_texts: list[Lone] = dataclasses.field(default_factory=list)
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
        *_section("Targets", as_table(results.outcomes)),
        *_section("Throughput and latency", main_table(results.rows)),
        _HOW_TO_READ.format(n_rounds=results.pace.n_rounds) if results.rows else "",
        *_section("Connections over two workers", spread(results.spreads)),
        *_section(f"One text of {N_TOKENS} tokens, large model", lone_text(results.lone_texts)),
        *_section("Short texts beside bulk work", interference(results.interferences)),
        *_section("Quality of a precision", quality(results.qualities)),
        *_section("Vectors and memory", vectors_and_memory(results)),
        client(results.rows),
    ]
    if results.left_out:
        parts += ["## Left out", "\n".join(f"- {what}: {why}" for what, why in results.left_out.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


def main_table(rows: Sequence[Row]) -> str:
    """Return the table of all rows."""
    by_name = {(row.workload, row.contestant): row for row in rows}
    header = (
        "workload", "contestant", "requests/s", "texts/s", "tokens/s", "p50 ms", "p99 ms", "n",
        f"against {ONNX_RUNTIME}", f"against {PACKS}", "settings",
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
                against(row, by_name.get((row.workload, ONNX_RUNTIME))),
                against_packs(row, by_name.get((row.workload, f"{PACKS} {row.contestant.rpartition(' ')[2]}"))),
                row.settings,
            ]
            for row in rows
        ],
    )


def against(row: Row, other: Row | None) -> str:
    """Return a row's ratio to another contestant's, with its range over rounds: of p50 with one connection."""
    if other is None:
        return ""
    if row is other:
        return "1"
    pairs = zip(row.rounds, other.rounds, strict=True)
    if row.n_connections == 1:
        return ratio([one.p50_ms / two.p50_ms for one, two in pairs if one.p50_ms is not None and two.p50_ms])
    return ratio([one.texts_per_s / two.texts_per_s for one, two in pairs])


def against_packs(row: Row, packs: Row | None) -> str:
    """Return a row's ratio of texts/s to full packs in the same precision, without the client's processor time."""
    if packs is None:
        return ""
    if row is packs:
        return "1"
    pairs = zip(row.rounds, packs.rounds, strict=True)
    return ratio([one.net_texts_per_s / two.net_texts_per_s for one, two in pairs])


def spread(measured: Sequence[Spread]) -> str:
    """Return the table of requests per second by the spread of the connections over two workers."""
    names = ["requests/s with {} and {}".format(*shares) for shares in (UNEVEN, EVEN)]
    return table(
        ("contestant", *names, "ratio"),
        [
            [
                each.contestant,
                number(median(each.uneven)),
                number(median(each.even)),
                ratio([one / two for one, two in zip(each.uneven, each.even, strict=True)]),
            ]
            for each in measured
        ],
    )


def lone_text(measured: Sequence[Lone]) -> str:
    """Return the table of one text on the large model."""
    return table(
        ("precision", "ms with all cores", "ms held to one core", "ratio"),
        [
            [
                each.precision,
                number(median(each.all_cores_ms)),
                number(median(each.one_core_ms)),
                ratio([one / two for one, two in zip(each.all_cores_ms, each.one_core_ms, strict=True)]),
            ]
            for each in measured
        ],
    )


def quality(measured: Sequence[Quality]) -> str:
    """Return the table of retrieval by each precision."""
    return table(
        ("contestant", "pairs", "MRR@10", "of float32's", "first ten neighbours kept"),
        [
            [
                each.contestant,
                str(each.n_pairs),
                f"{each.mrr:.4f}",
                f"{100 * each.mrr_kept:.2f} %",
                f"{100 * each.neighbours_kept:.1f} %",
            ]
            for each in measured
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


def _section(title: str, contents: str) -> list[str]:
    return [f"## {title}", contents] if contents else []
