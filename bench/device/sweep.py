"""Measures requests of many sizes, as many of them as there is time for."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from bench.texts import Shelf

Texts = list[str]
# The size of a request, in texts, and what was measured for it.
Point = dict[str, Any]
# A function that sends requests, and begins none after so many seconds. It returns `requests`, the number of responses,
# `elapsed_s`, from the first request to the last response, and what else it measured.
Run = Callable[[list[Texts], float], Point]

# More would not make a result more exact.
_MOST_ROUNDS = 200

# The kinds of texts, by the shelf's. The tokens of a full text fill the window.
KINDS = {"short": ("short",), "full": ("long", "passage")}


class Pace(NamedTuple):
    """How long to measure.

    Attributes:
        sizes: Texts of a request, ascending.
        clients: Numbers of clients that send over HTTP at the same time.
        point_s: Seconds for one size, about.
        most_s: Most seconds for one size. Sizes that would take longer are left out.
    """

    sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    clients: Sequence[int] = (1, 16)
    point_s: float = 0.4
    most_s: float = 8.0


QUICK = Pace(sizes=(1, 4), clients=(1, 2), point_s=0.1, most_s=2.0)


class Sweep(NamedTuple):
    """The measured sizes, and a line for each kind of which some were left out."""

    points: list[Point]
    left_out: list[str]


def request(shelf: Shelf, kind: str, n_texts: int) -> Texts:
    """Return new texts of a kind in KINDS."""
    return [" ".join(shelf.text(part) for part in KINDS[kind]) for _ in range(n_texts)]


def sweep(pace: Pace, shelf: Shelf, run: Run, n_at_once: int, until_s: float) -> Sweep:
    """Measure each size of each kind, until a time on the monotonic clock.

    Args:
        pace: Sizes and times.
        shelf: Supplies the texts.
        run: See `Run`.
        n_at_once: Requests that `run` sends at the same time.
        until_s: When to end.
    """
    found = Sweep([], [])
    # Seconds of a text in the last size, which a text of a larger size does not exceed.
    text_s = dict.fromkeys(KINDS, 0.0)
    for n_texts in pace.sizes:
        for kind in list(text_s):
            left_s = min(pace.most_s, until_s - time.monotonic())
            if left_s <= 0 or 3 * text_s[kind] * n_texts * n_at_once > left_s:
                found.left_out.append(f"{kind} texts, {n_at_once} at once: from {n_texts} texts on, for want of time")
                del text_s[kind]
                continue
            requests = (request(shelf, kind, n_texts) for _ in itertools.count())
            point = _measured(pace, requests, run, n_at_once, left_s)
            text_s[kind] = point["elapsed_s"] / (point["requests"] * n_texts)
            elapsed_s = point.pop("elapsed_s")
            found.points.append(
                {
                    "kind": kind,
                    "texts": n_texts,
                    "at_once": n_at_once,
                    "texts_per_s": round(1 / text_s[kind], 1),
                    "request_ms": round(1000 * elapsed_s * n_at_once / point["requests"], 3),
                    **point,
                }
            )
    return found


def _measured(pace: Pace, requests: Iterator[Texts], run: Run, n_at_once: int, left_s: float) -> Point:
    """Warm up with one round of requests, and return what the following rounds took; the first, if no time is left."""
    first = run(list(itertools.islice(requests, n_at_once)), left_s)
    first_s: float = first["elapsed_s"]
    n_rounds = int(min(_MOST_ROUNDS, max(2, pace.point_s / first_s), left_s / first_s - 1))
    return run(list(itertools.islice(requests, n_at_once * n_rounds)), left_s - first_s) if n_rounds else first
