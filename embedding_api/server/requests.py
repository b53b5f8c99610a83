"""The way of a request from its connection to a thread, a greenlet or a refusal, and of the response back.

A request is refused for its head, for how much of it has come, or for how much waits.
"""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any

from gunicorn.config import Config
from gunicorn.http.errors import ParseException

from embedding_api.errors import InvalidKeyError, NotReadyError, RequestTimeoutError, ServiceError
from embedding_api.request import FILE_BODIES, Request, joined
from embedding_api.server import response
from embedding_api.server.connection import Connection
from embedding_api.server.connections import Connections
from embedding_api.server.greenlets import Greenlets
from embedding_api.server.parser import Parser
from embedding_api.server.pool import Pool
from embedding_api.server.waits import Wait
from embedding_api.service import service_of
from embedding_api.telemetry import metrics
from embedding_api.web import auth
from embedding_api.web.routing import route_of

# A guess at the bytes of a token, for requests that have not been read.
_BYTES_PER_TOKEN = 4
# Endpoints that need the engine; and those that tell a load balancer whether to send more.
_WORK, _READINESS = frozenset({"embeddings.create_embeddings"}), frozenset({"health.get_ready"})
# Methods whose routes read no body, so that a faulty one does not matter to them.
_BODILESS = frozenset({"GET", "HEAD"})
# Bytes for which there must be room before a body comes whose length is not known.
_UNKNOWN_BODY_BYTES = 65_536
# The most bytes of a body that the loop itself answers, about 200 words, and the most commas in it, which bound its
# texts: other clients wait while their answer is written.
_MAX_SHORT_BYTES, _MAX_SHORT_COMMAS = 1024, 32


class Requests:
    """All requests of a worker. The loop calls its methods; a thread runs `_answer` alone.

    Args:
        worker: Gunicorn's, with its poller, its configuration and its application.
        is_draining: Returns True while the whole server stops and still accepts.

    Attributes:
        connections: The connections of the worker.
        pool: Its threads, and the requests that wait for one, each with its connection.
        greenlets: For short requests, which need no thread.
    """

    def __init__(self, worker: Any, is_draining: Callable[[], bool]) -> None:
        service, config, file_bodies = service_of(worker.wsgi), worker.cfg, worker.wsgi.extensions.get(FILE_BODIES, {})
        self._worker = worker
        self._config: Config = config
        self._engine, self._settings = service.engine, service.settings
        self._is_draining = is_draining
        self.pool: Pool[tuple[Connection, Request]] = Pool(config.threads, self._answer)
        self.greenlets = Greenlets(lambda: worker.method_queue.defer(_do_nothing))
        self.connections = Connections(
            worker.poller,
            lambda client: Parser(config, client, service.settings.max_body_bytes, file_bodies),
            self._refusal_of_rest,
            self._accept,
            keepalive_s=config.keepalive,
            client_timeout_s=service.settings.client_timeout_s,
        )

    def say_arriving(self) -> None:
        """Publish what this worker holds: bytes, and a guess at the tokens of waiting requests."""
        n_waiting_bytes = sum(request.n_body_bytes for _, request in self.pool.waiting)
        n_held_bytes = self.connections.n_held_bytes
        self._engine.runner.seat.publish_arriving(n_waiting_bytes // _BYTES_PER_TOKEN, n_held_bytes)

    def _refusal_of_rest(self, parser: Parser) -> ServiceError | None:
        """Return why the rest of a request must not come; None if it may."""
        self.say_arriving()
        if not parser.has_body:
            return None
        # No route without a key reads a body, so a client without one may fill neither the memory nor the disk.
        if self._settings.require_auth and (wrong_key := self._wrong_key(parser.head)):
            return wrong_key
        if parser.is_to_file:
            return _draining() if self._is_draining() else None
        admission, n_missing_bytes = self._engine.runner.admission, parser.n_missing_bytes
        has_room = admission.has_room(_UNKNOWN_BODY_BYTES if n_missing_bytes is None else n_missing_bytes)
        return None if has_room else admission.overloaded()

    def _refusal(self, head: Any, error: ServiceError | None, *, has_body: bool) -> ServiceError | None:
        """Return the error with which a request is refused; None if the application must answer it.

        A request that has no key where it needs one is refused for that, and learns nothing else.

        Args:
            head: The head of the request.
            error: What is wrong with the request or with its body.
            has_body: The request has a body.
        """
        if error is not None:
            return None if head.method in _BODILESS else self._for_route(head, error)
        if self._is_draining():
            return self._for_route(head, _draining(), _WORK | _READINESS)
        admission = self._engine.runner.admission
        if has_body and admission.is_full():
            return self._for_route(head, admission.overloaded(), _WORK)
        return None

    def _for_route(
        self, head: Any, error: ServiceError | None, endpoints: AbstractSet[str] | None = None
    ) -> ServiceError | None:
        """Return the error if it concerns the route of the request, or the error for a missing key."""
        route = route_of(self._worker.wsgi, head.method, head.path)
        if route is None or (endpoints is not None and route.endpoint not in endpoints):
            return None
        wrong_key = self._wrong_key(head) if auth.needs_key(route.endpoint, self._settings) else None
        return wrong_key or error

    def _wrong_key(self, head: Any) -> InvalidKeyError | None:
        """Return the error for a missing or wrong key; None if the key is right."""
        try:
            auth.check_key(joined(head.headers).get("authorization", ""), self._settings.api_key_secret)
        except InvalidKeyError as error:
            return error
        return None

    def _accept(self, connection: Connection, error: ServiceError | ParseException | None) -> None:
        """Hand a request that has arrived to a thread or a greenlet, or refuse it."""
        connection.must_close = error is not None
        if isinstance(error, ParseException | RequestTimeoutError):
            # A head may be missing.
            response.write_refusal(connection, error, self._config)
            self.connections.write(connection)
            return
        has_body, is_to_file = connection.parser.has_body, connection.parser.is_to_file
        request = connection.begin_work()
        request.caller.limit_wait(self._settings.request_timeout_s, request.headers.get)
        self.say_arriving()
        refusal = self._refusal(request.head, error, has_body=has_body)
        if refusal is not None:
            self._refuse(connection, request, refusal)
            self.connections.write(connection)
            return
        self._worker.count_request()
        metrics.IN_PROGRESS.inc()
        if error is None and has_body and not is_to_file and _is_short(request):
            request.caller.new_event = self.greenlets.new_event
            self.greenlets.start(partial(self._answer_short, connection, request))
            return
        # A request without a body embeds nothing, and one with an error has no body that is read.
        self.pool.submit((connection, request), is_urgent=not has_body or error is not None)

    def refuse_waiting(self, *, is_end: bool) -> None:
        """Refuse requests that wait for a thread: those whose deadline has passed, or all at the end of the worker."""
        for job in self.pool.waiting.copy():
            connection, request = job
            error: ServiceError
            if is_end:
                error = NotReadyError("this worker stopped before the request's turn came; try again")
            elif request.caller.remaining_s() == 0:
                error = request.caller.deadline_error()
            else:
                continue
            self.pool.waiting.remove(job)
            refusal = self._refusal(request.head, error, has_body=True)
            if refusal is None:
                # There is no such route, or it reads no body. The application answers at once.
                self.pool.submit(job, is_urgent=True)
            else:
                metrics.IN_PROGRESS.dec()
                self._refuse(connection, request, refusal)
                self.connections.finish(connection)

    def _refuse(self, connection: Connection, request: Request, error: ServiceError) -> None:
        connection.must_close = connection.must_close or not self._may_keep()
        response.write_error(self._worker.wsgi, connection, request, error, self._config)

    def _may_keep(self) -> bool:
        """Return False if connections must close after their response."""
        n_idle = self.connections.waits.n_waiting(Wait.NEXT_REQUEST)
        return bool(self._worker.alive and self._config.keepalive and n_idle < self._worker.max_keepalived)

    def _answer(self, job: tuple[Connection, Request]) -> None:
        """Answer a request, in a thread."""
        connection, request = job
        try:
            response.write_answer(self._worker.wsgi, connection, request, self._config, self._may_keep)
            connection.send()
        except OSError:
            # The client is gone. The loop notices that, too, and closes the connection.
            connection.must_close = True
        finally:
            self._worker.method_queue.defer(self._finish, connection)

    def _finish(self, connection: Connection) -> None:
        """Give the thread of a request the next one, and send what is left of the response."""
        self.pool.finished()
        self._end(connection)

    def _answer_short(self, connection: Connection, request: Request) -> None:
        """Answer a request, in a greenlet."""
        try:
            response.write_answer(self._worker.wsgi, connection, request, self._config, self._may_keep)
        finally:
            self._end(connection)

    def _end(self, connection: Connection) -> None:
        """Count a request as answered, and send what is left of its response."""
        metrics.IN_PROGRESS.dec()
        self.connections.finish(connection)


def _is_short(request: Request) -> bool:
    """Return True if the loop may answer a request itself."""
    if request.n_body_bytes > _MAX_SHORT_BYTES or request.head.method in _BODILESS or request.body is None:
        return False
    body = request.body.read()
    request.body.seek(0)
    return body.count(b",") <= _MAX_SHORT_COMMAS


def _do_nothing() -> None:
    """Do nothing: the loop is to have a turn."""


def _draining() -> NotReadyError:
    return NotReadyError("the server is stopping; ask another, or come again when it is back")
