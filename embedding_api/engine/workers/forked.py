"""Workers that a plain program forks, so that all cores compute for it, without Gunicorn."""

import contextlib
import logging
import os
import select
import signal
import threading
import time
from types import TracebackType
from typing import NoReturn, Self

from embedding_api.engine.scheduling.board import Seat
from embedding_api.engine.workers.exchange import Exchange
from embedding_api.engine.workers.runner import Runner
from embedding_api.engine.workers.setup import Setup
from embedding_api.machine import programs

logger = logging.getLogger(__name__)

# Seconds between two looks at a batch that may hang, and those that a worker has to end.
_TICK_S, _END_S = 1.0, 30.0
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
        self._seats: dict[int, Seat] = {}

    def __enter__(self) -> Self:
        exchange = self._setup.exchange
        if exchange is None or threading.active_count() > 1:
            raise RuntimeError("forked workers need an exchange, and a process without threads that it may fork")
        # Closed when this process ends, however it does.
        closed, self._open = os.pipe()
        parent = os.getpid()
        own = exchange.board.take_seat()
        for _ in range(self._n_workers - 1):
            if (seat := exchange.board.take_seat()) is None:
                break
            pid = os.fork()
            if pid == 0:
                os.close(self._open)
                _serve(self._setup, seat, closed, parent)
            self._seats[pid] = seat
        os.close(closed)
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
        os.close(self._open)
        self.runner.close()
        self._reaper.join(_END_S)
        for pid in list(self._seats):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._reaper.join()

    @property
    def pids(self) -> list[int]:
        """The other processes that live."""
        return list(self._seats)

    def _reap(self, exchange: Exchange) -> None:
        """Wait for the ends of the workers, and give up their seats."""
        fds = {os.pidfd_open(pid): pid for pid in self._seats}
        while fds:
            for fd in select.select(list(fds), [], [])[0]:
                pid = fds.pop(fd)
                os.close(fd)
                _, status = os.waitpid(pid, 0)
                if status:
                    logger.warning("worker %d ended with code %d", pid, os.waitstatus_to_exitcode(status))
                exchange.leave(self._seats.pop(pid))


def _serve(setup: Setup, seat: Seat, closed: int, parent: int) -> NoReturn:
    """Compute for the others until the process that forked this one closes its end of the pipe."""
    code = 1
    try:
        programs.end_with_parent(parent)
        runner = Runner(setup, seat)
        runner.start()
        while not select.select([closed], [], [], _TICK_S)[0]:
            if runner.retire_if_stuck():
                time.sleep(_RETIRE_S)
                os._exit(code)
        runner.close()
        code = 0
    except BaseException:
        logger.exception("a worker failed")
    finally:
        os._exit(code)
