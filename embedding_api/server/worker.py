"""The loop of a worker process: a subclass of Gunicorn's threaded worker, whose threads never wait for clients.

The loop waits for all clients at once. The worker drains before it stops, as a load balancer needs it, and ends itself
when its engine hangs.
"""

import errno
import logging
import os
import selectors
import signal
import time
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from embedding_api.engine.scheduling.board import Seat
from embedding_api.engine.workers.runner import Runner
from embedding_api.errors import StartError
from embedding_api.server import flags, scarcity
from embedding_api.server.lifecycle import Lifecycle, Phase
from embedding_api.server.requests import Requests
from embedding_api.service import service_of
from embedding_api.telemetry.log import refuse

logger = logging.getLogger(__name__)

# Seconds between two heartbeats, and between two looks at the phase of a worker that stops.
TICK_S, STOPPING_TICK_S = 1.0, 0.1

# Seconds for which a worker leaves a new connection to one that has fewer. A loop takes less, unless it is very busy.
_LEAVE_S = 2e-3


def tell_workers_of_sigterm(arbiter: Any) -> None:
    """Let workers know that SIGTERM ends the whole server. Call it in the master, once it handles signals.

    Gunicorn has no hook between a master's signal and those to its workers. After SIGUSR2 two masters share the socket,
    and the service goes on whichever of them ends.
    """

    def handle(signal_number: int, frame: Any) -> None:
        # A child that was just forked has this handler until it has its own.
        if os.getpid() == arbiter.pid:
            flags.SERVER_STOPS.set(value=arbiter.reexec_pid == arbiter.master_pid == 0)
        arbiter.signal(signal_number, frame)

    signal.signal(signal.SIGTERM, handle)


class Worker(ThreadWorker):  # type: ignore[misc] # Gunicorn has no types
    """A worker process. Gunicorn calls its overridden methods at the same moments as those of `ThreadWorker`."""

    wsgi: Any
    # The master sets both before the fork: the worker's seat on the exchange of batches, if workers can send; and its
    # slot for counting.
    seat: Seat | None
    slot: int
    _next_tick_s = _accepts_from_s = _left_at_s = 0.0

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse TLS, which the loop does not speak."""
        if cfg.is_ssl:
            refuse(StartError("certfile and keyfile are set, but this service speaks plain HTTP; leave TLS to a proxy"))
        super().check_config(cfg, log)

    def get_thread_pool(self) -> None:
        """Return no pool: `Requests` has its own threads."""

    def load_wsgi(self) -> None:
        """Load the application and prepare for its requests."""
        super().load_wsgi()
        self._service = service_of(self.wsgi)
        self._lifecycle = Lifecycle(self._service.settings.drain_s, self.cfg.graceful_timeout)
        self.requests = Requests(self, is_draining=lambda: self._lifecycle.phase is Phase.DRAINING)
        self._connections = self.requests.connections

    def handle_quit(self, sig: int, frame: Any) -> None:
        """End at once, on SIGQUIT and SIGINT."""
        # The handler of ThreadWorker would shut down a pool, and wait for ever for a lock that this thread holds.
        super(ThreadWorker, self).handle_quit(sig, frame)

    def run(self) -> None:
        """Serve until the worker's last phase."""
        self.poller.register(self.method_queue.fileno(), selectors.EVENT_READ, self.method_queue.run_callbacks)
        try:
            with scarcity.ending_worker():
                self.requests.pool.start()
            flags.HAS_SERVED.set()
            while self._advance() is not Phase.ENDED:
                may_accept = self._may_accept()
                self.set_accept_enabled(may_accept and time.monotonic() >= self._accepts_from_s)
                self._runner.publish_connections(self._connections.n_open if may_accept else None)
                self.wait_for_and_dispatch_events(self._timeout_s())
                self.requests.greenlets.run()
                self._connections.expire()
                self.requests.say_arriving()
            if self._lifecycle.is_retired:
                logging.shutdown()
                # Python's own exit would wait for the thread that hangs. Codes 3 and 4 would end the master.
                os._exit(1)
            self.requests.refuse_waiting(is_end=True)
        finally:
            # Also when a signal ends the worker at once. Python's exit waits for the threads, which go on until the
            # engine ends.
            self.requests.pool.close()
            # Only this loop can answer short requests: refuse those that wait, and then those that the core has.
            self._runner.refuse_rest()
            self.requests.greenlets.run_all()
            self._service.engine.close()
            self.requests.greenlets.run_all()
        self.poller.close()

    @property
    def _runner(self) -> Runner:
        return self._service.engine.runner

    def _timeout_s(self) -> float:
        now_s = time.monotonic()
        next_s = min(self._next_tick_s, self._connections.waits.next_s(), self.requests.greenlets.next_s())
        if self._accepts_from_s > now_s:
            next_s = min(next_s, self._accepts_from_s)
        return min(max(next_s - now_s, 0.0), TICK_S if self.alive else STOPPING_TICK_S)

    def _advance(self) -> Phase:
        """Do what the time requires, and return the phase of the worker."""
        self._tick()
        before = self._lifecycle.phase
        phase = self._lifecycle.advance(
            time.monotonic(),
            is_told_to_stop=not self.alive,
            server_stops=bool(flags.SERVER_STOPS),
            n_connections=self._connections.n_open,
        )
        if phase is not before:
            self._enter(phase)
        return phase

    def _tick(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_tick_s:
            return
        self._next_tick_s = now_s + TICK_S
        self.notify()
        if not self.is_parent_alive():
            self.alive = False
        if not self._lifecycle.is_retired and self._runner.retire_if_stuck():
            timeout_s = self._service.settings.inference_timeout_s
            logger.critical("a batch has hung for %d s: this worker hands on its other work and ends", timeout_s)
            self.alive = False
            self._lifecycle.retire(now_s)
        self.requests.refuse_waiting(is_end=False)

    def _enter(self, phase: Phase) -> None:
        if phase in {Phase.WINDING_UP, Phase.RETIRING, Phase.ENDED}:
            self._connections.wind_up()
        if phase in {Phase.WINDING_UP, Phase.ENDED} and flags.SERVER_STOPS:
            self._stop_listening()
        if phase is Phase.REFUSING:
            self._runner.refuse_rest()

    def _may_accept(self) -> bool:
        has_room = self._connections.n_open < self.worker_connections
        return self._lifecycle.phase.accepts and has_room

    def _stop_listening(self) -> None:
        """Let the kernel refuse connections. It accepts them while any worker listens, and loses them."""
        self.set_accept_enabled(False)
        for listener in self.sockets:
            listener.close()

    def accept(self, listener: Any) -> None:
        """Accept a new connection, unless another worker has fewer: then leave it to that one for a moment."""
        now_s = time.monotonic()
        # A connection that is still there after that moment is this worker's. One that comes later is another.
        was_left = now_s < self._left_at_s + 2 * _LEAVE_S
        if not was_left and not self._runner.seat.has_fewest_connections():
            self._left_at_s, self._accepts_from_s = now_s, now_s + _LEAVE_S
            return
        self._left_at_s = 0.0
        try:
            client_socket, client = listener.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                logger.warning("no connection can be accepted for %.0f s: %s", TICK_S, error.strerror)
                self._accepts_from_s = time.monotonic() + TICK_S
            return
        self._connections.add(client_socket, client, listener.getsockname())
        self._runner.publish_connections(self._connections.n_open)

    def count_request(self) -> None:
        """Count a request towards Gunicorn's `max_requests`, after which the worker ends and is replaced."""
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
