"""Draws throughput and p99 of one short text against the number of connections."""

from collections.abc import Sequence
from pathlib import Path

from bench.measure import Row
from bench.servers import ROOT
from bench.workloads import SHORT

PICTURE = ROOT / "docs" / "benchmark.png"

# Okabe and Ito's colours, which colour-blind people can tell apart. Marks and line styles differ for print.
_STYLES = {
    "service float32": ("#0072B2", "o", "-"),
    "service bfloat16": ("#56B4E9", "s", "-"),
    "service int8": ("#009E73", "^", "-"),
    "Flask": ("#000000", "x", ":"),
    "infinity torch": ("#D55E00", "D", "--"),
    "infinity torch, batches of 8": ("#CC79A7", "P", "--"),
    "infinity optimum": ("#E69F00", "v", "--"),
}
_WIDTH, _HEIGHT, _DPI = 10, 4.2, 150


def draw(rows: Sequence[Row], circumstances: str, path: Path = PICTURE) -> None:
    """Write the picture of what was measured.

    Args:
        rows: Rows of any workloads; those of other workloads are ignored.
        circumstances: Text below the picture.
        path: Path of the PNG file.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = {workload.name for workload in SHORT}
    figure, (left, right) = plt.subplots(1, 2, figsize=(_WIDTH, _HEIGHT), layout="constrained")
    for contestant, (colour, mark, style) in _STYLES.items():
        ours = sorted(
            (row for row in rows if row.contestant == contestant and row.workload in names),
            key=lambda row: row.n_connections,
        )
        if not ours:
            continue
        x = [row.n_connections for row in ours]
        look = {"color": colour, "marker": mark, "linestyle": style, "linewidth": 2, "markersize": 6}
        left.plot(x, [row.requests_per_s for row in ours], label=contestant, **look)
        right.plot(x, [row.p99_ms for row in ours], **look)
    ticks = [workload.n_connections for workload in SHORT]
    for axes, title in ((left, "requests/s (more is better)"), (right, "p99 in ms (less is better)")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.set_xlabel("connections, one short text a request")
        axes.set_title(title)
        axes.grid(visible=True, color="#DDDDDD")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(bottom=0)
    right.set_yscale("log")
    right.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    left.legend(frameon=False)
    figure.supxlabel(circumstances, fontsize=8, color="#555555")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)
