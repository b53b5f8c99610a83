"""How long a text takes that has all cores to itself, and with how many threads: measured in a process that ends.

The process that forks the workers must not start a thread, and OpenVINO's threads cannot be taken back.
"""

import logging
import math
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext
from typing import NamedTuple

import numpy as np

from embedding_api.engine.backends import Backend
from embedding_api.machine import cores
from embedding_api.settings import Settings

logger = logging.getLogger(__name__)

# Tokens of the texts that are measured, besides one that fills the window.
_LENGTHS = (16, 128)
# A text without a window's limit is measured at so many tokens.
_NO_WINDOW = 512
_N_RUNS = 5
# Seconds after which a length is not run again.
_SLOW_S = 0.05
# More than two threads must take less than this share of the time of half as many. Two always help: where they seem not
# to, other work has taken the cores meanwhile.
_WORTH = 0.95
# A length that is expected to take longer is left out. The window of some models takes minutes.
_LONGEST_S = 1.0
# Seconds that all may take. A process that hangs must not hold up the start.
_TIMEOUT_S = 20.0
# Seconds that the way of a text to another worker takes, and that of its vector back; see docs/decisions/0014.
_WAY_S = 0.5e-3

# Seconds of a text alone, by the index of its backend and its tokens.
_Times = Mapping[tuple[int, int], float]


class Alone(NamedTuple):
    """How a text is computed that waits alone.

    Attributes:
        n_threads: The number of threads that takes the least time; at least two if there are as many cores.
        worth_tokens: For each backend the fewest tokens for which all those threads are worth the way to another
            worker; infinity if none are.
    """

    n_threads: int
    worth_tokens: Sequence[float]


# One core computes each text.
NOT_MEASURED = Alone(1, [])


class Threads(NamedTuple):
    """The threads of an inference on a CPU.

    Attributes:
        n_batch: Of a batch, beside those of other workers.
        n_alone: The most of a text that waits alone.
    """

    n_batch: int
    n_alone: int

    @classmethod
    def of(cls, settings: Settings) -> "Threads":
        """Return the threads with these settings. A worker more than cores can be the soloist: scheduling/crew.py."""
        n_cores = cores.count()
        n_batch = max(1, n_cores // settings.workers)
        has_soloist = settings.device == "cpu" and sys.platform == "linux" and settings.workers > n_cores
        return cls(n_batch, n_cores if has_soloist else n_batch)


def measure(names: Mapping[Backend, str], windows: Mapping[Backend, int | None], n_most: int) -> Alone:
    """Return how a text is computed that waits alone, and log what it takes.

    Args:
        names: All backends, loaded and warm, with the names of their models.
        windows: The most tokens of a text of each; None for no limit.
        n_most: The most threads.
    """
    lengths = [[n for n in (*_LENGTHS, windows[each] or _NO_WINDOW) if n <= (windows[each] or n)] for each in names]
    texts = [(index, n_tokens) for index, each in enumerate(lengths) for n_tokens in dict.fromkeys(each)]
    by_threads = _measured(list(names), texts, n_most)
    if not by_threads:
        logger.warning("one text is computed on one core, because a measurement of several failed")
        return NOT_MEASURED
    n_threads = max(by_threads)
    for index, name in enumerate(names.values()):
        ms = {str(n): round(1000 * s, 1) for (each, n), s in by_threads[n_threads].items() if each == index}
        fields = {"model": name, "threads": n_threads, "ms_by_tokens": ms}
        logger.info("a text that waits alone", extra={"fields": fields})
    if n_threads == 1:
        return NOT_MEASURED
    saved_s: list[dict[int, float]] = [{} for _ in names]
    for (index, n_tokens), one_s in by_threads[1].items():
        if (index, n_tokens) in by_threads[n_threads]:
            saved_s[index][n_tokens] = one_s - by_threads[n_threads][index, n_tokens]
    return Alone(n_threads, list(map(_worth_tokens, saved_s)))


def _worth_tokens(saved_s: Mapping[int, float]) -> float:
    """Return the fewest tokens at which more threads save `_WAY_S`, between the lengths that were measured."""
    before, before_s = 0, 0.0
    for n_tokens, now_s in sorted(saved_s.items()):
        if now_s >= _WAY_S:
            return before + (n_tokens - before) * max(0.0, (_WAY_S - before_s) / (now_s - before_s))
        before, before_s = n_tokens, now_s
    return math.inf


def _measured(backends: Sequence[Backend], texts: Sequence[tuple[int, int]], n_most: int) -> Mapping[int, _Times]:
    """Return the times with 1 thread, and with each number that was worth more; nothing if the measurement failed."""
    if n_most == 1:
        return {1: _times(backends, texts, 1)}
    if multiprocessing.current_process().daemon:
        # It may not have children.
        return {}
    context: ForkContext = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, backends, texts, n_most), daemon=True)
    process.start()
    sender.close()
    by_threads: Mapping[int, _Times] = {}
    try:
        if receiver.poll(_TIMEOUT_S):
            by_threads = receiver.recv()
    except EOFError:
        pass
    process.kill()
    process.join()
    receiver.close()
    return by_threads


def _measure(sender: Connection, backends: Sequence[Backend], texts: Sequence[tuple[int, int]], n_most: int) -> None:
    for backend in backends:
        backend.prepare(1)
    by_threads = {n: _times(backends, texts, n) for n in (1, 2)}
    while (n_threads := max(by_threads)) < n_most:
        n_more = min(2 * n_threads, n_most)
        times, before = _times(backends, texts, n_more), by_threads[n_threads]
        # Relative, so that the short texts of a small model count as much as the long ones of a large one.
        both = times.keys() & before.keys()
        if sum(times[text] / before[text] for text in both) > _WORTH * len(both):
            break
        by_threads[n_more] = times
    sender.send(by_threads)


def _times(backends: Sequence[Backend], texts: Sequence[tuple[int, int]], n_threads: int) -> _Times:
    """Return the times of texts, each backend's in ascending order, but for those that would take too long."""
    times: dict[tuple[int, int], float] = {}
    before, before_s = 1, 0.0
    for index, n_tokens in texts:
        if before_s * n_tokens / before > _LONGEST_S and before < n_tokens:
            continue
        times[index, n_tokens] = before_s = _seconds(backends[index], n_tokens, n_threads)
        before = n_tokens
    return times


def _seconds(backend: Backend, n_tokens: int, n_threads: int) -> float:
    backend.use_threads(n_threads)
    ids = np.ones(n_tokens, dtype=np.int64)
    times: list[float] = []
    while len(times) < _N_RUNS and sum(times) < _SLOW_S:
        began_s = time.perf_counter()
        backend.compute([ids], 0)
        times.append(time.perf_counter() - began_s)
    return min(times)
