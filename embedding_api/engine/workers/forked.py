"""Workers that a plain program forks, so that all cores compute for it, without Gunicorn."""

import contextlib
import logging
import multiprocessing
import os
import sys
import threading
import time
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from types import TracebackType
from typing import Self

from embedding_api.engine.scheduling.board import Seat
from embedding_api.engine.workers.runner import Runner
from embedding_api.engine.workers.setup import Setup
from embedding_api.machine import programs
from embedding_api.telemetry.metrics import counters

logger = logging.getLogger(__name__)

# Seconds between two checks for a batch that hangs.
_TICK_S = 1.0
# Seconds for which a worker whose batch hangs lives on, so that the others get its messages.
_LAST_MESSAGES_S = 1.0


class ForkedWorkers:
    """Workers forked from this process, as a context. Enter it before the process starts any thread.

    A worker that ends is not replaced. The others compute its batches. What they count is shown only if the program has
    called `counters.share`.

    Args:
        setup: The setup of all workers. Its exchange has a seat for each.
        n_workers: The number of processes that compute, this one included.

    Attributes:
        runner: This process's own runner, which takes the texts of all requests.
    """

    runner: Runner

    def __init__(self, setup: Setup, n_workers: int) -> None:
        if setup.exchange is None:
            raise RuntimeError("forked workers need an exchange, which this system does not offer")
        self._setup, self._exchange = setup, setup.exchange
        self._n_workers = n_workers
        self._seats: dict[ForkProcess, Seat] = {}
        self._reaper = threading.Thread(target=self._reap, name="reaper", daemon=True)
        self._is_ending = False

    def __enter__(self) -> Self:
        if threading.active_count() > 1 or multiprocessing.current_process().daemon:
            raise RuntimeError("forked workers need a process that has no other thread and is no daemon itself")
        exchange = self._exchange
        with contextlib.ExitStack() as stack:
            own = exchange.board.take_seat()
            if own is not None:
                stack.callback(exchange.leave, own)
            stack.callback(self._end_others)
            for _ in range(self._n_workers - 1):
                if (seat := exchange.board.take_seat()) is None:
                    break
                process = ForkProcess(target=_serve, args=(self._setup, seat, os.getpid()), daemon=True)
                stack.callback(exchange.leave, seat)
                process.start()
                self._seats[process] = seat
            self._reaper.start()
            self.runner = Runner(self._setup, own)
            stack.callback(self.runner.close)
            self.runner.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    @property
    def pids(self) -> list[int | None]:
        """The other processes that live."""
        return [process.pid for process in self._seats]

    def _end_others(self) -> None:
        self._is_ending = True
        for process in list(self._seats):
            process.kill()
        if self._reaper.ident is None:
            self._reap()
        else:
            self._reaper.join()

    def _reap(self) -> None:
        """Wait until workers end, and leave their seats for them."""
        while self._seats:
            # The program may have waited for its children itself. Then nothing but the sentinel tells that one ended.
            ended = connection.wait([process.sentinel for process in self._seats])
            for process in [one for one in self._seats if one.sentinel in ended]:
                process.join()
                if not self._is_ending:
                    logger.warning("worker %d ended with code %s", process.pid, process.exitcode)
                self._exchange.leave(self._seats.pop(process))


def _serve(setup: Setup, seat: Seat, parent: int) -> None:
    """Compute for the others until the process that forked this one ends it."""
    try:
        programs.end_with_parent(parent)
        # Not in the memory of its parent: two processes that add to one number lose counts.
        counters.become(seat.address.seat)
        runner = Runner(setup, seat)
        runner.start()
        while not runner.retire_if_stuck():
            time.sleep(_TICK_S)
        time.sleep(_LAST_MESSAGES_S)
    except BaseException:
        logger.exception("a worker failed")
    sys.exit(1)
