"""Gunicorn's threaded worker, whose threads never wait for clients: `Reception` does.

A thread gets a request that is there as a whole. What must not wait for a thread is answered by a few spare ones. The
worker refuses in the service's own words what Gunicorn refuses, stops as a service behind a load balancer should, and
ends itself when its engine hangs.
"""

import errno
import logging
import mmap
import os
import selectors
import signal
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from gunicorn.http.errors import InvalidRequestLine, LimitRequestHeaders, ParseException
from gunicorn.workers.gthread import ThreadWorker

from embedding_api.engine.engine import Engine
from embedding_api.engine.scheduling.board import Seat
from embedding_api.errors import NotReadyError, ServiceError, StartError
from embedding_api.request import CALLER, REFUSAL
from embedding_api.server import refusals
from embedding_api.server.connection import Answer, Connection, State
from embedding_api.server.connections import Reception
from embedding_api.server.framing import Verdict
from embedding_api.server.lifecycle import Lifecycle, Phase
from embedding_api.service import service_of
from embedding_api.settings import Settings
from embedding_api.telemetry import metrics
from embedding_api.telemetry.log import refuse

logger = logging.getLogger(__name__)

# For what must not wait behind embeddings: health checks, and refusals.
N_SPARE_THREADS = 2
TICK_S, STOPPING_TICK_S = 1.0, 0.1
_READ_BYTES = 2**20

# Whether the whole server stops, in memory that the master shares with its workers: a worker gets the same SIGTERM
# when it is only renewed, and others serve in its place.
_server_stops = mmap.mmap(-1, 1)


def tell_workers_of_sigterm(arbiter: Any) -> None:
    """Lets workers know that SIGTERM ends the whole server; to be called in the master, once it handles signals.

    Gunicorn has no hook between a master's signal and those to its workers. After SIGUSR2 two masters share the socket,
    and the service goes on whichever of them ends.
    """

    def handle(signal_number: int, frame: Any) -> None:
        # A child that was just forked has this handler until it has its own.
        if os.getpid() == arbiter.pid:
            _server_stops[0] = arbiter.reexec_pid == arbiter.master_pid == 0
        arbiter.signal(signal_number, frame)

    signal.signal(signal.SIGTERM, handle)


class Worker(ThreadWorker):  # type: ignore[misc] # Gunicorn has no types
    """See the module. What it overrides is called when and as `ThreadWorker` does."""

    wsgi: Any
    # Given by the master before the fork: where it exchanges batches, if workers can; and where it counts.
    seat: Seat | None
    slot: int
    # One byte, shared with the master: 1 once the worker ends by itself.
    has_ended: mmap.mmap

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuses what the reception cannot do."""
        if cfg.is_ssl:
            refuse(StartError("certfile and keyfile are set, but this service speaks plain HTTP; leave TLS to a proxy"))
        super().check_config(cfg, log)

    def init_process(self) -> None:
        """Prepares the worker in its own process, and runs it."""
        self._spare_pool = ThreadPoolExecutor(N_SPARE_THREADS)
        # Requests that wait for a thread, in their order.
        self._line: deque[Connection] = deque()
        # Of their bodies.
        self._n_line_bytes = 0
        self._n_threads_taken = 0
        self._said = (0, 0)
        self._next_tick_s = self._accepts_from_s = 0.0
        super().init_process()

    def load_wsgi(self) -> None:
        """Loads the application, and lets it know of each request who waits and whether to refuse it."""
        super().load_wsgi()
        app = self.wsgi
        service = service_of(app)
        self._engine: Engine = service.engine
        self._settings: Settings = service.settings
        self._lifecycle = Lifecycle(self._settings.drain_s, self.cfg.graceful_timeout)
        self._reception = Reception(self.poller, self.cfg, service.settings, self)
        # Gunicorn keeps no connection alive when there are too many here.
        self.keepalived_conns = self._reception.idle

        def serve(environ: dict[str, Any], start_response: Any) -> Any:
            answer: Answer = environ["gunicorn.socket"]
            environ[CALLER] = answer.caller
            environ[REFUSAL] = answer.refusal
            environ["wsgi.input"] = refusals.Body(environ["wsgi.input"])
            return app(environ, start_response)

        self.wsgi = serve

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGQUIT and SIGINT: ends at once."""
        # Not by way of ThreadWorker, which shuts its threads down first: that waits for a lock which the loop, here
        # interrupted, may hold.
        super(ThreadWorker, self).handle_quit(sig, frame)

    def run(self) -> None:
        """Serves until the worker is told to stop, or must."""
        self.poller.register(self.method_queue.fileno(), selectors.EVENT_READ, self.method_queue.run_callbacks)
        while self._advance() is not Phase.ENDED:
            self.set_accept_enabled(self._may_accept())
            self.wait_for_and_dispatch_events(self._timeout_s())
            self._reception.expire()
            self._say_arriving()
        if self._lifecycle.is_retired:
            logging.shutdown()
            # Python's own exit would wait for the thread that hangs. Codes 3 and 4 would end the master.
            os._exit(1)
        # The threads go on until the engine ends, and tell those whose turn did not come.
        while self._line:
            self._submit(self.tpool, self._next_in_line())
        for pool in (self.tpool, self._spare_pool):
            pool.shutdown(wait=False)
        self.poller.close()

    def _tick(self) -> None:
        now = time.monotonic()
        if now < self._next_tick_s:
            return
        self._next_tick_s = now + TICK_S
        self.notify()
        if not self.is_parent_alive():
            self.alive = False
        if not self._lifecycle.is_retired and self._engine.runner.retire_if_stuck():
            timeout_s = self._settings.inference_timeout_s
            logger.critical("a batch has hung for %d s: this worker hands on its other work and ends", timeout_s)
            self.alive = False
            self._lifecycle.retire(now)
        # Who waited for a thread until its time was over is told, whenever one is free.
        while self._line and now >= self._line[0].sock.caller.arrived_s + self._settings.request_timeout_s:
            self._submit(self._spare_pool, self._next_in_line())

    def _timeout_s(self) -> float:
        next_s = min(self._next_tick_s, self._reception.next_s())
        return min(max(next_s - time.monotonic(), 0.0), TICK_S if self.alive else STOPPING_TICK_S)

    def _say_arriving(self) -> None:
        """Lets all workers know what is to come: tokens, at a guess of four bytes each, and bytes held."""
        arriving = (self._n_line_bytes // 4, self._reception.n_held_bytes)
        if arriving != self._said:
            self._said = arriving
            self._engine.runner.seat.publish_arriving(*arriving)

    # How it ends

    def _advance(self) -> Phase:
        """Do what is due now, and return the phase that the worker is in."""
        self._tick()
        before = self._lifecycle.phase
        phase = self._lifecycle.advance(
            time.monotonic(),
            is_told_to_stop=not self.alive,
            server_stops=bool(_server_stops[0]),
            n_connections=self._reception.n_connections,
        )
        if phase is not before:
            self._enter(phase)
        return phase

    def _enter(self, phase: Phase) -> None:
        if phase in {Phase.WINDING_UP, Phase.RETIRING, Phase.ENDED}:
            self._reception.wind_up()
        if phase in {Phase.WINDING_UP, Phase.ENDED} and _server_stops[0]:
            self._stop_listening()
        if phase is Phase.GIVING_UP:
            self._engine.runner.refuse_rest()

    def _may_accept(self) -> bool:
        has_room = self._reception.n_connections < self.worker_connections
        return self._lifecycle.phase.accepts and has_room and time.monotonic() >= self._accepts_from_s

    def _stop_listening(self) -> None:
        """Refuses connections once no worker listens; while one does, the kernel takes them, and they would be lost."""
        self.set_accept_enabled(False)
        for listener in self.sockets:
            listener.close()

    # A request's way

    def accept(self, listener: Any) -> None:
        """Takes a new connection."""
        try:
            client_socket, client = listener.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                logger.warning("no connection can be accepted for %.0f s: %s", TICK_S, error.strerror)
                self._accepts_from_s = time.monotonic() + TICK_S
            return
        self._reception.admit(client_socket, client, listener.getsockname())

    def has_room(self, n_bytes: int) -> bool:
        """See `reception.Host`."""
        self._say_arriving()
        return self._engine.runner.admission.has_room(n_bytes)

    def take(self, connection: Connection, verdict: Verdict) -> None:
        """Gives a request to a thread, or puts it in line for one."""
        is_whole = verdict is Verdict.WHOLE
        refusal = self._refusal(connection, verdict)
        at_end: Exception | None = None
        if verdict is Verdict.HEAD_TOO_LARGE:
            at_end = LimitRequestHeaders("more than a head may have")
        elif verdict is Verdict.MALFORMED or not connection.framing.n_head_bytes:
            at_end = InvalidRequestLine(b"")
        connection.must_close = not is_whole
        connection.begin(self.cfg, refusal, is_whole=is_whole, at_end=at_end)
        metrics.IN_PROGRESS.inc()
        # All that is not whole will be refused, and without a body nothing can be embedded.
        is_quick = not is_whole or not connection.framing.has_body or refusal is not None
        if not is_quick or self._n_threads_taken < self.cfg.threads:
            self._line.append(connection)
            self._n_line_bytes += connection.n_body_bytes
            self._call_next()
        else:
            self._submit(self._spare_pool, connection)

    def _refusal(self, connection: Connection, verdict: Verdict) -> ServiceError | None:
        if self._lifecycle.phase is Phase.DRAINING:
            return NotReadyError("the server is stopping; ask another, or come again when it is back")
        # Its client would send more, and may not.
        self._say_arriving()
        lacks_room = verdict is Verdict.UNDER_WAY and not connection.has_ended
        wants_engine = verdict is Verdict.WHOLE and connection.framing.has_body
        admission = self._engine.runner.admission
        return admission.overloaded() if lacks_room or (wants_engine and admission.is_full()) else None

    def _call_next(self) -> None:
        """Gives the threads that are free to those in line."""
        while self._line and self._n_threads_taken < self.cfg.threads:
            connection = self._next_in_line()
            connection.holds_thread = True
            self._n_threads_taken += 1
            self._submit(self.tpool, connection)

    def _next_in_line(self) -> Connection:
        connection = self._line.popleft()
        self._n_line_bytes -= connection.n_body_bytes
        return connection

    def _submit(self, pool: ThreadPoolExecutor, connection: Connection) -> None:
        work = pool.submit(self.handle, connection)
        work.add_done_callback(lambda work: self.method_queue.defer(self.finish_request, connection, work))

    def handle(self, connection: Connection) -> bool:
        """Answers a request, in a thread; whether its connection can be used again."""
        is_kept = super().handle(connection)
        pieces, connection.sock.pieces = connection.sock.pieces, []
        connection.put(*pieces)
        try:
            connection.send()
        except OSError:
            return False
        return is_kept and connection.parser_agrees

    def handle_request(self, req: Any, conn: Connection) -> bool:
        """Answers a request that Gunicorn's parser has understood, in a thread."""
        # The reception has, before the body could come.
        req._expected_100_continue = False  # noqa: SLF001 - there is no other way
        if conn.must_close:
            req.force_close()
        return bool(super().handle_request(req, conn))

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:  # noqa: FBT001 - Gunicorn's
        """Whether the connection can be used again; reads what is left of the body, which is all there."""
        try:
            while keepalive and conn.parser.mesg.body.read(_READ_BYTES):
                pass
        except (ParseException, OSError):
            return False
        return keepalive

    def handle_error(self, req: Any, client: Answer, addr: Any, exc: Exception) -> None:  # noqa: ARG002 - Gunicorn's
        """Tells what Gunicorn refuses, or what failed, in the service's own words, unless it is answered already."""
        if client.pieces:
            return
        refusals.refuse(refusals.of(exc, self.cfg), client.sendall, exc)

    def finish_request(self, connection: Connection, work: "Future[bool]") -> None:
        """A thread is done with a request, and may take the next."""
        metrics.IN_PROGRESS.dec()
        if connection.holds_thread:
            connection.holds_thread = False
            self._n_threads_taken -= 1
            self._call_next()
        if connection.state is State.CLOSED:
            connection.end()
            return
        connection.must_close = connection.must_close or work.exception() is not None or not work.result()
        self._reception.answered(connection)
