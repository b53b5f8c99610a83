"""Gives contestants the same new texts in turn, round by round, each as many as it serves in about the same time."""

import dataclasses
from collections.abc import Callable, Sequence
from statistics import median

from bench.contestants import Contestant, Round, Texts, Variant
from bench.texts import Shelf
from bench.workloads import Workload
from embedding_api.machine import cores

_MAX_REQUESTS = 3000


@dataclasses.dataclass(frozen=True)
class Pace:
    """The duration of a measurement.

    Attributes:
        n_rounds: Number of rounds that count.
        share: Share of each workload's `round_s`.
        heat_s: Seconds of the warm-up, which also finds the fastest variant.
    """

    n_rounds: int = 6
    share: float = 1.0
    heat_s: float = 0.4


QUICK = Pace(n_rounds=1, share=0.3, heat_s=0.1)


@dataclasses.dataclass(frozen=True)
class Figures:
    """The figures of one round. In a round all contestants have the same texts and neighbours.

    Attributes:
        texts_per_s: Texts per second of wall time.
        net_texts_per_s: The same in the time that the client left: its processor time is subtracted from that of all
            cores.
        p50_ms, p99_ms: Latencies; None if there are no requests.
    """

    texts_per_s: float
    net_texts_per_s: float
    p50_ms: float | None
    p99_ms: float | None


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of a contestant in a workload. Rates are medians over rounds.

    Attributes:
        p50_ms, p99_ms: Latencies over the requests of all rounds; None if there are no requests.
        n_requests: Number of those requests. With fewer than 100, p99 is the slowest.
        client_ms: Processor time of the client for each request.
        rounds: The figures of each round.
    """

    workload: str
    contestant: str
    settings: str
    n_connections: int
    requests_per_s: float
    texts_per_s: float
    tokens_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    n_requests: int
    client_ms: float | None
    rounds: list[Figures]


def measure(
    workload: Workload,
    field: Sequence[Contestant],
    shelf: Shelf,
    n_tokens: Callable[[Texts], int],
    pace: Pace,
    left_out: dict[str, str],
) -> list[Row]:
    """Measure a workload.

    Args:
        workload: The workload.
        field: All contestants. The workload chooses those that it applies to.
        shelf: Supplies the texts.
        n_tokens: Counts the tokens of texts.
        pace: Duration of the measurement.
        left_out: Gets the reason for each contestant or variant that has no row.
    """
    heats = [
        (contestant, heat)
        for contestant in field
        if contestant.name.startswith(workload.of)
        and (heat := _heat(workload, contestant, shelf, pace, left_out)) is not None
    ]
    runs = [_Runs(contestant, variant, _n_requests(rate, workload, pace)) for contestant, (variant, rate) in heats]
    for number in range(pace.n_rounds if runs else 0):
        requests = [workload.request(shelf) for _ in range(max(each.n_requests for each in runs))]
        lengths = [n_tokens(request) for request in requests]
        for each in runs if number % 2 else reversed(runs):
            if each.failure:
                continue
            try:
                each.rounds.append(each.variant.run(requests[: each.n_requests], workload.n_connections))
                each.n_tokens.append(sum(lengths[: each.n_requests]))
            except RuntimeError as error:
                each.failure = str(error)
    left_out |= {f"{each.contestant.name} in {workload.name}": each.failure for each in runs if each.failure}
    return [_row(workload, each) for each in runs if not each.failure]


@dataclasses.dataclass
class _Runs:
    """The rounds of a contestant, each with the tokens of its texts, and the reason why there are no more."""

    contestant: Contestant
    variant: Variant
    n_requests: int
    rounds: list[Round] = dataclasses.field(default_factory=list)
    n_tokens: list[int] = dataclasses.field(default_factory=list)
    failure: str = ""


def figures(round_: Round, n_texts: int, n_cores: int) -> Figures:
    """Return the figures of a round.

    Args:
        round_: The round.
        n_texts: Number of texts in a request.
        n_cores: Number of cores that the client shares with the server.
    """
    n = round_.n_requests * n_texts
    latencies_ms = [1000 * latency_s for latency_s in round_.latencies_s]
    return Figures(
        texts_per_s=n / round_.elapsed_s,
        net_texts_per_s=n / (round_.elapsed_s - round_.client_cpu_s / n_cores),
        p50_ms=percentile(latencies_ms, 50),
        p99_ms=percentile(latencies_ms, 99),
    )


def _heat(
    workload: Workload, contestant: Contestant, shelf: Shelf, pace: Pace, left_out: dict[str, str]
) -> tuple[Variant, float] | None:
    """Warm up all variants; return the fastest and its requests per second, or None if all fail."""
    rates = []
    n_first = workload.n_connections if contestant.is_server else 1
    for variant in contestant.variants:
        try:
            requests = [workload.request(shelf) for _ in range(n_first)]
            elapsed_s = variant.run(requests, workload.n_connections).elapsed_s
            n_more = round(pace.heat_s / elapsed_s * len(requests))
            if n_more > len(requests):  # the first requests were too few to warm anything up
                requests = [workload.request(shelf) for _ in range(min(n_more, _MAX_REQUESTS))]
                elapsed_s = variant.run(requests, workload.n_connections).elapsed_s
            rates.append((len(requests) / elapsed_s, variant))
        except RuntimeError as error:
            left_out[f"{contestant.name} ({variant.settings}) in {workload.name}"] = str(error)
    if not rates:
        return None
    rate, variant = max(rates, key=lambda each: each[0])
    return variant, rate


def _n_requests(rate: float, workload: Workload, pace: Pace) -> int:
    """Return the number of requests in a contestant's round: at least one for each connection."""
    return min(_MAX_REQUESTS, max(workload.n_connections, round(rate * workload.round_s * pace.share)))


def _row(workload: Workload, runs: _Runs) -> Row:
    rounds = runs.rounds
    latencies_ms = [1000 * latency_s for round_ in rounds for latency_s in round_.latencies_s]
    n_requests = sum(round_.n_requests for round_ in rounds)
    n_cores = cores.count()
    of_rounds = [figures(round_, workload.n_texts, n_cores) for round_ in rounds]
    texts_per_s = median(each.texts_per_s for each in of_rounds)
    return Row(
        workload=workload.name,
        contestant=runs.contestant.name,
        settings=runs.variant.settings,
        n_connections=workload.n_connections,
        requests_per_s=texts_per_s / workload.n_texts,
        texts_per_s=texts_per_s,
        tokens_per_s=median(n / round_.elapsed_s for n, round_ in zip(runs.n_tokens, rounds, strict=True)),
        p50_ms=percentile(latencies_ms, 50),
        p99_ms=percentile(latencies_ms, 99),
        n_requests=n_requests,
        client_ms=1000 * sum(round_.client_cpu_s for round_ in rounds) / n_requests if latencies_ms else None,
        rounds=of_rounds,
    )


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Return the smallest value that this percentage of the values does not exceed; None if there are no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100).__trunc__() - 1)]
