"""The response to a request: what the WSGI application returns, or an error. All have Gunicorn's own response head.

Gunicorn's `wsgi.create` makes the environment, with its rules for SCRIPT_NAME and for the headers of proxies.
"""

import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import orjson
from greenlet import GreenletExit
from gunicorn.config import Config
from gunicorn.http import wsgi

from embedding_api.errors import EngineError, RequestTimeoutError, ServiceError
from embedding_api.request import REQUEST, Request
from embedding_api.server import refusals
from embedding_api.server.connection import Connection
from embedding_api.telemetry import access, log, metrics
from embedding_api.web import observe
from embedding_api.web.routing import route_of

logger = logging.getLogger(__name__)

# In place of the head of a request that has none, or whose connection must close because of it.
_NO_HEAD = SimpleNamespace(method="", version=(1, 1), should_close=lambda: True)
_LOG_MESSAGES = {RequestTimeoutError: "late request refused", EngineError: "request failed"}


def write_answer(
    application: Callable[..., Any],
    connection: Connection,
    request: Request,
    config: Config,
    may_keep: Callable[[], bool],
) -> None:
    """Put the application's response into the connection's outbox, or an error if the application fails.

    Args:
        application: The WSGI application.
        connection: Gets the response; its `must_close` is set if it cannot be used again.
        request: The request.
        config: Gunicorn's.
        may_keep: Returns False if connections must close; asked before the response's head is written.
    """
    response = None
    try:
        response, environ = wsgi.create(request.head, connection.outbox, *connection.addresses, config)
        del environ["gunicorn.socket"]
        environ["wsgi.multithread"] = True
        environ["wsgi.input"] = request.body
        environ[REQUEST] = request
        chunks = application(environ, response.start_response)
        _write(chunks, response, must_close=connection.must_close or not may_keep())
        connection.must_close = response.should_close()
    except (SystemExit, GreenletExit):
        # The process ends: a signal may come in the middle of anything that the loop's thread does.
        raise
    # A panic of a library in Rust is no Exception, and would end the thread.
    except BaseException as error:
        connection.must_close = True
        if response is None or not response.headers_sent:
            write_refusal(connection, error, config)
        else:
            logger.exception("the application failed in the middle of a response, which is cut off")


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
    application: Any, connection: Connection, request: Request, error: ServiceError, config: Config
) -> None:
    """Put the response for an error into the connection's outbox. Log, count and trace it as Flask's own responses.

    Args:
        application: The Flask application with its service.
        connection: Gets the response; its `must_close` is set if it cannot be used again.
        request: The request.
        error: What its client reads.
        config: Gunicorn's.
    """
    head, arrived_s = request.head, request.caller.arrived_s
    route = route_of(application, head.method, head.path)
    request_id, span = observe.begin(application, route, head.method, head.scheme, request.headers.get, arrived_s)
    _write_failure(connection, head, error, request_id, config)
    rule = "" if route is None else route.rule
    access.record(head.method, rule, error.status, time.monotonic() - arrived_s, code=error.code)
    if span is not None:
        span.end(error.status, request_id, {})
    log.end_request()


def write_refusal(connection: Connection, error: BaseException, config: Config) -> None:
    """Put the response to a request that was not read or not answered into the connection's outbox.

    Args:
        connection: Gets the response; its `must_close` is set.
        error: Why. What Gunicorn or the application raised is logged if the fault is ours, and never the parser's
            exception, which quotes the request.
        config: Gunicorn's.
    """
    refusal = refusals.of(error, config)
    is_ours, request_id = refusal.status >= 500, access.request_id()
    logger.log(
        # Anybody can send malformed requests, as many as they like, and no operator can do anything about them.
        logging.ERROR if is_ours else logging.INFO,
        _LOG_MESSAGES.get(type(refusal), "malformed request refused"),
        exc_info=error if is_ours else None,
        extra={"fields": {"request_id": request_id, "status": refusal.status, "code": refusal.code}},
    )
    metrics.REFUSED.labels(refusal.code).inc()
    metrics.REQUESTS.labels(access.UNKNOWN, access.UNKNOWN, refusal.status, "").inc()
    _write_failure(connection, _NO_HEAD, refusal, request_id, config)


def _write_failure(connection: Connection, head: Any, error: ServiceError, request_id: str, config: Config) -> None:
    """Put an error into the outbox of a connection, and set `must_close` if it cannot be used again."""
    response = wsgi.Response(head, connection.outbox, config)
    if connection.must_close:
        response.force_close()
    body = orjson.dumps(error.body)
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
    response.start_response(
        # Flask writes the phrase in capital letters.
        f"{error.status} {HTTPStatus(error.status).phrase.upper()}",
        [*headers.items(), ("X-Request-ID", request_id)],
    )
    response.write(body if head.method != "HEAD" else b"")
    connection.must_close = response.should_close()
