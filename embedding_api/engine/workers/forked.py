"""Workers that a plain program forks, so that all cores compute for it, without Gunicorn."""

import logging
import os
import signal
import sys
import threading
import time
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from types import TracebackType
from typing import Self

from embedding_api.engine.scheduling.board import Seat
from embedding_api.engine.workers.exchange import Exchange
from embedding_api.engine.workers.runner import Runner
from embedding_api.engine.workers.setup import Setup
from embedding_api.machine import programs

logger = logging.getLogger(__name__)

# Seconds between two looks at a batch that may hang.
_TICK_S = 1.0
# Seconds for which a worker whose batch hangs lives on, so that its news reach the others.
_RETIRE_S = 1.0


class ForkedWorkers:
    """Workers forked from this process, as a context. Enter it before the process starts any thread.

    A worker that dies is not replaced: the others compute its batches.

    Args:
        setup: The setup of all workers. Its exchange has a seat for each.
        n_workers: The number of processes that compute, this one included.

    Attributes:
        runner: This process's own runner, which takes the texts of all requests.
    """

    runner: Runner

    def __init__(self, setup: Setup, n_workers: int) -> None:
        self._setup = setup
        self._n_workers = n_workers
        self._seats: dict[ForkProcess, Seat] = {}

    def __enter__(self) -> Self:
        exchange = self._setup.exchange
        if exchange is None or threading.active_count() > 1:
            raise RuntimeError("forked workers need an exchange, and a process without threads that it may fork")
        own = exchange.board.take_seat()
        for _ in range(self._n_workers - 1):
            if (seat := exchange.board.take_seat()) is None:
                break
            process = ForkProcess(target=_serve, args=(self._setup, seat, os.getpid()), daemon=True)
            process.start()
            self._seats[process] = seat
        self._reaper = threading.Thread(target=self._reap, args=(exchange,), name="reaper", daemon=True)
        self._reaper.start()
        self.runner = Runner(self._setup, own)
        try:
            self.runner.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.runner.close()
        for process in list(self._seats):
            process.terminate()
        self._reaper.join()

    @property
    def pids(self) -> list[int | None]:
        """The other processes that live."""
        return [process.pid for process in self._seats]

    def _reap(self, exchange: Exchange) -> None:
        """Wait for the ends of the workers, and give up their seats."""
        while self._seats:
            connection.wait([process.sentinel for process in self._seats])
            for process in [one for one in self._seats if not one.is_alive()]:
                if process.exitcode != -signal.SIGTERM:
                    logger.warning("worker %d ended with code %d", process.pid, process.exitcode)
                exchange.leave(self._seats.pop(process))


def _serve(setup: Setup, seat: Seat, parent: int) -> None:
    """Compute for the others until the process that forked this one ends it."""
    # The program may have a handler of its own.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    programs.end_with_parent(parent)
    runner = Runner(setup, seat)
    runner.start()
    while not runner.retire_if_stuck():
        time.sleep(_TICK_S)
    time.sleep(_RETIRE_S)
    sys.exit(1)
