"""The response to a request: what the WSGI application returns, or an error. Both have Gunicorn's own response head.

Gunicorn's `wsgi.create` makes the environment, with its rules for SCRIPT_NAME and for the headers of proxies.
"""

import io
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
from gunicorn.config import Config
from gunicorn.http import wsgi

from embedding_api.errors import ServiceError
from embedding_api.request import REQUEST, Body
from embedding_api.server import refusals
from embedding_api.server.connection import Connection, Work
from embedding_api.telemetry import access, log
from embedding_api.web.routing import Route

if TYPE_CHECKING:
    # OpenTelemetry is optional.
    from embedding_api.telemetry.tracing import Tracing

logger = logging.getLogger(__name__)


class Input(io.RawIOBase):
    """The `wsgi.input` of a body in memory, for an application that does not use the request's record."""

    def __init__(self, body: bytes | bytearray) -> None:
        super().__init__()
        self._rest = memoryview(body)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Copy the next bytes into a buffer, and return how many."""
        n_bytes = min(len(buffer), len(self._rest))
        buffer[:n_bytes] = self._rest[:n_bytes]
        self._rest = self._rest[n_bytes:]
        return n_bytes


def write_answer(
    application: Callable[..., Any], connection: Connection, work: Work, config: Config, may_keep: Callable[[], bool]
) -> bool:
    """Put the application's response into the connection's outbox, or an error if the application fails.

    Args:
        application: The WSGI application.
        connection: Gets the response.
        work: The request.
        config: Gunicorn's.
        may_keep: Returns False if connections must close; asked before the response's head is written.

    Returns:
        True if the connection can be used again.
    """
    response = None
    try:
        response, environ = wsgi.create(work.head, connection.outbox, connection.client, connection.server, config)
        del environ["gunicorn.socket"]
        environ["wsgi.multithread"] = True
        environ["wsgi.input"] = _stream(work.request.body)
        environ[REQUEST] = work.request
        chunks = application(environ, response.start_response)
        _write(chunks, response, must_close=connection.must_close or not may_keep())
    except Exception as error:
        if response is None or not response.headers_sent:
            refusals.refuse(refusals.of(error, config), connection.outbox.sendall, error)
        else:
            logger.exception("the application failed in the middle of a response, which is cut off")
        return False
    return not response.should_close()


def _write(chunks: Any, response: Any, *, must_close: bool) -> None:
    if must_close:
        response.force_close()
    try:
        if isinstance(chunks, wsgi.FileWrapper):
            response.write_file(chunks)
        else:
            for chunk in chunks:
                response.write(chunk)
        response.close()
    finally:
        if hasattr(chunks, "close"):
            chunks.close()


def write_error(
    connection: Connection,
    work: Work,
    error: ServiceError,
    config: Config,
    route: Route | None,
    tracing: "Tracing | None" = None,
) -> None:
    """Put the response for an error into the connection's outbox, count it and log its access line.

    Args:
        connection: Gets the response; its `must_close` is set if it cannot be used again.
        work: The request.
        error: What its client reads.
        config: Gunicorn's.
        route: Its route; None if there is none.
        tracing: Makes its span; None if it has none.
    """
    request = work.request
    request_id = access.request_id(request.headers.get("x-request-id", ""))
    body = orjson.dumps(error.body)
    response = wsgi.Response(work.head, connection.outbox, config)
    if connection.must_close:
        response.force_close()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
    response.start_response(
        # Flask writes the phrase in capital letters.
        f"{error.status} {HTTPStatus(error.status).phrase.upper()}",
        [*headers.items(), ("X-Request-ID", request_id)],
    )
    response.write(body if request.method != "HEAD" else b"")
    connection.must_close = response.should_close()
    rule, arrived_s = "" if route is None else route.rule, request.caller.arrived_s
    traceparent = request.headers.get("traceparent", "")
    trace_id = access.trace_id(traceparent)
    if tracing is not None:
        span = tracing.begin(request.method, rule, work.head.scheme, traceparent if trace_id else "", arrived_s)
        trace_id = span.trace_id or trace_id
        span.end(error.status, request_id, {}, [])
    log.begin_request(request_id=request_id, **({"trace_id": trace_id} if trace_id else {}))
    access.record(request.method, rule, error.status, time.monotonic() - arrived_s, code=error.code)
    log.end_request()


def _stream(body: Body | None) -> Any:
    return io.BufferedReader(Input(body)) if isinstance(body, bytes | bytearray) else body
