"""Who computes when: one inference at a time in each process, batches of all requests in turn."""

import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TypeVar

from embedding_api.errors import NotReadyError

T = TypeVar("T")


class Dispatcher:
    """The process's one inference thread. It starts with the first job, so that a master forks without threads.

    A request hands in one batch after the other, so that a short one waits for at most one batch of each request
    before it and not for their whole backlog. One thread, since each further one would keep scratch memory of its own.

    Args:
        prepare: Runs first in the inference thread: thread counts are kept per thread, devices per process.
    """

    def __init__(self, prepare: Callable[[], None]) -> None:
        self._prepare = prepare
        self._prepared = False
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self._busy_since: float | None = None

    def start(self) -> None:
        """Starts the inference thread and waits until it is prepared; raises what preparing raises."""
        self.compute(lambda: None)

    def compute(self, job: Callable[[], T]) -> tuple[T, float, float]:
        """Runs a job in the inference thread, after those handed in before it.

        Returns:
            What the job returned, the seconds that it waited, the seconds that it ran.

        Raises:
            NotReadyError: The process ends, and the job was not begun.
        """
        handed_in = time.monotonic()
        try:
            future = self._executor.submit(self._run, job)
        except RuntimeError as error:
            raise NotReadyError("this worker is stopping") from error
        try:
            result, started, ended = future.result()
        except CancelledError as error:
            raise NotReadyError("this worker stopped before the request's turn came") from error
        return result, started - handed_in, ended - started

    def _run(self, job: Callable[[], T]) -> tuple[T, float, float]:
        self._busy_since = started = time.monotonic()
        try:
            if not self._prepared:
                self._prepare()
                self._prepared = True
            return job(), started, time.monotonic()
        finally:
            self._busy_since = None

    def busy_for_s(self) -> float:
        """Seconds since the job in work began; 0 while there is none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """Finishes the job in work, drops those behind it, ends the thread."""
        self._executor.shutdown(cancel_futures=True)
