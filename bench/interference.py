"""Measures the latency of single short texts while a bulk client keeps the server busy."""

import dataclasses
from collections.abc import Sequence

from bench.contestants import Contestant, Served
from bench.drive import Background
from bench.measure import Pace, percentile
from bench.texts import MIXED, Shelf
from bench.workloads import LEGACY, SERVICE

# The bulk client always has one request waiting behind the current one. It has this many different requests, sent in
# turn.
_BULK_TEXTS = MIXED * 8
_N_BULK_CONNECTIONS, _N_BULK = 2, 12
_LEAD_S = 1.0


@dataclasses.dataclass(frozen=True)
class Interference:
    """Latencies of short texts, sent one after another to an idle server and beside bulk work.

    Attributes:
        long_ms: Median latency of one text that fills the window, on an idle server.
        n_loaded: Number of short texts answered beside the bulk work.
        bulk_texts_per_s: Texts per second of the bulk client in that time.
    """

    contestant: str
    settings: str
    idle_p50_ms: float
    idle_p99_ms: float
    loaded_p50_ms: float
    loaded_p99_ms: float
    long_ms: float
    n_loaded: int
    bulk_texts_per_s: float

    @property
    def bound_ms(self) -> float:
        """Bound on p99 beside bulk work: p99 on an idle server plus two texts that fill the window."""
        return self.idle_p99_ms + 2 * self.long_ms


def measure(field: Sequence[Contestant], shelf: Shelf, pace: Pace) -> list[Interference]:
    """Measure the contestants that take requests of any size: the service, and infinity."""
    bulk = [[shelf.text(kind) for kind in _BULK_TEXTS] for _ in range(_N_BULK)]
    return [
        _measure(contestant.name, contestant.variants[0], shelf, pace, bulk)
        for contestant in field
        if contestant.name.startswith((SERVICE, LEGACY)) and isinstance(contestant.variants[0], Served)
    ]


def _measure(name: str, served: Served, shelf: Shelf, pace: Pace, bulk: Sequence[list[str]]) -> Interference:
    n_most, limit_s = (400, 8.0 * pace.share)
    short = [[shelf.text("short")] for _ in range(2 * n_most)]
    idle = served.run(short[:n_most], 1, limit_s=limit_s / 3)
    long = served.run([[shelf.text("long")] for _ in range(30)], 1, limit_s=limit_s / 5)
    background = Background([served.request(texts) for texts in bulk], _N_BULK_CONNECTIONS, _LEAD_S)
    loaded = served.run(short[n_most:], 1, limit_s=limit_s, background=background)
    return Interference(
        contestant=name,
        settings=served.settings,
        idle_p50_ms=_ms(idle.latencies_s, 50),
        idle_p99_ms=_ms(idle.latencies_s, 99),
        loaded_p50_ms=_ms(loaded.latencies_s, 50),
        loaded_p99_ms=_ms(loaded.latencies_s, 99),
        long_ms=_ms(long.latencies_s, 50),
        n_loaded=loaded.n_requests,
        bulk_texts_per_s=loaded.n_background * len(_BULK_TEXTS) / loaded.elapsed_s,
    )


def _ms(latencies_s: Sequence[float], percent: float) -> float:
    value = percentile(latencies_s, percent)
    assert value is not None, "the first request begins before the limit"
    return 1000 * value
