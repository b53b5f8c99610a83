"""A target and its outcome."""

import dataclasses
from collections.abc import Sequence
from statistics import median

from bench.table import table


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A target and its outcome.

    Attributes:
        target: The target in words, with its bound.
        measured: The measured value, with the range over rounds if there is one.
        met: True if the target is met; None if it was not measured.
    """

    target: str
    measured: str
    met: bool | None


def judged(target: str, values: Sequence[float], bound: float, *, is_most: bool) -> Outcome:
    """Return the outcome for the median of the rounds' values."""
    words = f"{target}: {'at most' if is_most else 'at least'} {bound:.2f}"
    if not values:
        return Outcome(words, "not measured", None)
    middle = median(values)
    shown = f"{middle:.2f} ({min(values):.2f} to {max(values):.2f})"
    return Outcome(words, shown, middle <= bound if is_most else middle >= bound)


def as_table(outcomes: Sequence[Outcome]) -> str:
    """Return the table of targets and their outcomes."""
    words = {True: "met", False: "NOT met", None: ""}
    return table(("target", "measured", ""), [[each.target, each.measured, words[each.met]] for each in outcomes])
