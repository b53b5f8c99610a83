"""The way of a request from its connection to a thread or to a refusal, and of the response back."""

from collections.abc import Callable
from typing import Any

from gunicorn.config import Config
from gunicorn.http.errors import ParseException

from embedding_api.errors import NotReadyError, RequestTimeoutError, ServiceError
from embedding_api.request import FILE_BODIES, Caller
from embedding_api.server import refusals, response
from embedding_api.server.connection import Connection, State, Work
from embedding_api.server.connections import Connections
from embedding_api.server.gate import Gate
from embedding_api.server.parser import Parser
from embedding_api.server.pool import Pool
from embedding_api.service import service_of
from embedding_api.telemetry import metrics
from embedding_api.web import observe

# A guess at the bytes of a token, for requests that have not been read.
_BYTES_PER_TOKEN = 4


class Requests:
    """All requests of a worker. The loop calls its methods; a thread runs `_answer` alone.

    Args:
        worker: Gunicorn's, with its poller, its configuration and its application.
        is_draining: Returns True while the whole server stops and still accepts.

    Attributes:
        connections: The connections of the worker.
    """

    def __init__(self, worker: Any, is_draining: Callable[[], bool]) -> None:
        service = service_of(worker.wsgi)
        self._worker = worker
        self._config: Config = worker.cfg
        self._engine, self._settings = service.engine, service.settings
        self._tracing = service.tracing
        self._file_bodies = worker.wsgi.extensions.get(FILE_BODIES, {})
        self._is_draining = is_draining
        self._gate = Gate(worker.wsgi)
        self._pool: Pool[Connection] = Pool(self._config.threads, self._answer)
        self._arriving = (0, 0)
        self.connections = Connections(
            worker.poller,
            self,
            self._new_parser,
            keepalive_s=self._config.keepalive,
            client_timeout_s=self._settings.client_timeout_s,
            max_discarded_bytes=self._settings.max_body_bytes,
        )

    def _new_parser(self, client: Any, buffer: bytearray) -> Parser:
        return Parser(self._config, client, self._settings.max_body_bytes, self._file_bodies, buffer)

    @property
    def n_waiting(self) -> int:
        """Requests that wait for a thread."""
        return len(self._pool.waiting)

    @property
    def n_running(self) -> int:
        """Requests that a thread answers now."""
        return self._pool.n_running

    def start(self) -> None:
        """Start the first threads.

        Raises:
            StartError: The system refuses them.
        """
        self._pool.start()

    def close_threads(self) -> None:
        """End the threads, each after the request that it works on. Safe in a signal handler."""
        self._pool.close()

    def say_arriving(self) -> None:
        """Publish what this worker holds: bytes, and a guess at the tokens of waiting requests."""
        n_waiting_bytes = sum(connection.work.request.n_bytes for connection in self._pool.waiting if connection.work)
        arriving = (n_waiting_bytes // _BYTES_PER_TOKEN, self.connections.n_held_bytes)
        if arriving != self._arriving:
            self._arriving = arriving
            self._engine.runner.seat.publish_arriving(*arriving)

    def refusal_of_rest(self, parser: Parser) -> ServiceError | None:
        """See `arrivals.Host`."""
        self.say_arriving()
        return self._gate.refusal_of_rest(parser, is_draining=self._is_draining())

    def accept_request(self, connection: Connection, error: ServiceError | ParseException | None) -> None:
        """See `arrivals.Host`."""
        parser = connection.parser
        if isinstance(error, ParseException | RequestTimeoutError):
            connection.must_close = True
            refusals.refuse(refusals.of(error, self._config), connection.outbox.sendall)
            self.connections.refuse(connection)
            return
        has_body = parser.has_body
        work = connection.begin_work()
        work.request.caller.limit_wait(self._settings.request_timeout_s, work.request.headers.get)
        connection.must_close = error is not None
        self.say_arriving()
        refusal = self._gate.refusal(work.head, error, is_draining=self._is_draining(), has_body=has_body)
        if refusal is not None:
            self._refuse(connection, work, refusal)
            return
        self._worker.count_request()
        metrics.IN_PROGRESS.inc()
        # A request without a body embeds nothing, and one with an error has no body that is read.
        self._pool.submit(connection, is_urgent=not has_body or error is not None)

    def refuse_late(self) -> None:
        """Refuse requests whose deadline has passed while they waited for a thread."""
        self._refuse_waiting(lambda caller: caller.deadline_error() if caller.remaining_s() == 0 else None)

    def refuse_waiting(self) -> None:
        """Refuse all requests that wait for a thread, at the end of the worker."""
        self._refuse_waiting(lambda _: NotReadyError("this worker stopped before the request's turn came; try again"))

    def _refuse_waiting(self, error_for: Callable[[Caller], ServiceError | None]) -> None:
        for connection in self._pool.waiting.copy():
            work = connection.require_work()
            if (error := error_for(work.request.caller)) is None:
                continue
            self._pool.waiting.remove(connection)
            refusal = self._gate.refusal(work.head, error, is_draining=False, has_body=True)
            if refusal is None:
                # There is no such route, or it reads no body. The application answers at once.
                self._pool.submit(connection, is_urgent=True)
            else:
                metrics.IN_PROGRESS.dec()
                self._refuse(connection, work, refusal)
                self.connections.count(connection)

    def _refuse(self, connection: Connection, work: Work, error: ServiceError) -> None:
        connection.must_close = connection.must_close or not self._may_keep()
        route = self._gate.route_of(work.head)
        tracing = self._tracing if route is not None and route.endpoint.startswith(observe.TRACED) else None
        response.write_error(connection, work, error, self._config, route, tracing)
        self.connections.refuse(connection)

    def _may_keep(self) -> bool:
        """Return False if connections must close after their response."""
        max_idle = self._config.worker_connections - self._config.threads
        return bool(self._worker.alive and self._config.keepalive and self.connections.n_idle < max_idle)

    def _answer(self, connection: Connection) -> None:
        """Answer a request, in a thread."""
        try:
            is_kept = response.write_answer(
                self._worker.wsgi, connection, connection.require_work(), self._config, self._may_keep
            )
            connection.must_close = connection.must_close or not is_kept
            connection.send()
        except OSError:
            # The client is gone. The loop notices that, too, and closes the connection.
            connection.must_close = True
        finally:
            self._worker.method_queue.defer(self._finish, connection)

    def _finish(self, connection: Connection) -> None:
        """Send what is left of a response, and give its thread the next request."""
        metrics.IN_PROGRESS.dec()
        self._pool.finished()
        if connection.state is State.CLOSED:
            connection.drop_response()
        else:
            self.connections.finish(connection)
