"""The threads of a worker, and the requests that wait for one. Only the worker's loop calls it.

Embeddings leave N_SPARE_THREADS threads free for requests that must not wait, such as health checks. Threads start as
they are needed. If the system refuses more of them, requests wait for those that there are.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

from embedding_api.errors import ScarcityError

logger = logging.getLogger(__name__)

T = TypeVar("T")

N_SPARE_THREADS = 2
# With one thread and the spare ones, a worker can answer everything.
N_FIRST_THREADS = 1 + N_SPARE_THREADS
# Seconds until the next attempt after the system refused a thread.
_RETRY_S = 1.0


class Pool(Generic[T]):
    """Threads that run jobs, and the jobs that wait.

    Args:
        max_threads: The most jobs that run at the same time, besides N_SPARE_THREADS urgent ones.
        run: Called with each job, in a thread.

    Attributes:
        waiting: Jobs that wait for a thread, in their order.
        n_running: Jobs that run now.
    """

    def __init__(self, max_threads: int, run: Callable[[T], None]) -> None:
        self._max_threads = max_threads + N_SPARE_THREADS
        self._run = run
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[T | None] = SimpleQueue()
        self._urgent: deque[T] = deque()
        self._retry_from_s = 0.0
        self.waiting: deque[T] = deque()
        self.n_running = 0

    def start(self) -> None:
        """Start the first threads.

        Raises:
            ScarcityError: The system refuses them.
        """
        while len(self._threads) < N_FIRST_THREADS:
            if not self._start_thread():
                raise ScarcityError(f"thread {len(self._threads) + 1} of those that a worker needs")

    def submit(self, job: T, *, is_urgent: bool) -> None:
        """Run a job as soon as there is a thread for it.

        Args:
            job: What `run` is called with.
            is_urgent: The job may use a thread that others leave free.
        """
        (self._urgent if is_urgent else self.waiting).append(job)
        self._hand_out()

    def finished(self) -> None:
        """Count a job as run, and give its thread the next one."""
        self.n_running -= 1
        self._hand_out()

    def close(self) -> None:
        """End the threads, each after the job that it runs."""
        for _ in self._threads:
            self._jobs.put(None)

    def _hand_out(self) -> None:
        for jobs, n_spare in ((self._urgent, 0), (self.waiting, N_SPARE_THREADS)):
            while jobs and self._ensure_thread(self.n_running + n_spare):
                self.n_running += 1
                self._jobs.put(jobs.popleft())

    def _ensure_thread(self, n_taken: int) -> bool:
        """Start a thread if all, `n_taken`, are taken. Return False if it may not be started, or cannot."""
        return n_taken < len(self._threads) or (n_taken < self._max_threads and self._start_thread())

    def _start_thread(self) -> bool:
        if time.monotonic() < self._retry_from_s:
            return False
        thread = threading.Thread(target=self._work, name=f"request-{len(self._threads) + 1}")
        # A signal may end the worker during the start, and `close` ends the threads that are in the list.
        self._threads.append(thread)
        try:
            thread.start()
        except RuntimeError as error:
            self._threads.pop()
            if not self._retry_from_s:
                logger.warning("requests wait for %d threads, and no more can be had: %s", len(self._threads), error)
            self._retry_from_s = time.monotonic() + _RETRY_S
            return False
        self._retry_from_s = 0.0
        return True

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._run(job)
            except BaseException:
                logger.exception("a request ended with an error in the server; this is a bug")
            # The thread would hold it until the next one comes.
            del job
