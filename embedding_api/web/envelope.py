"""Every failure in one body: error class to status, type and code, in one table."""

import logging
from typing import Any, NamedTuple

from flask import Flask, Response, current_app
from werkzeug.exceptions import HTTPException

from embedding_api import errors
from embedding_api.telemetry import metrics
from embedding_api.web import answer

logger = logging.getLogger(__name__)

_CALLER, _SERVER = "invalid_request_error", "server_error"


class Envelope(NamedTuple):
    """How a class of errors is told; code None: the error carries its own."""

    status: int
    type: str
    code: str | None


TABLE: dict[type[errors.ServiceError], Envelope] = {
    errors.InvalidBodyError: Envelope(400, _CALLER, "invalid_body"),
    errors.InvalidJsonError: Envelope(400, _CALLER, "invalid_json"),
    errors.UnsupportedEncodingError: Envelope(415, _CALLER, "unsupported_encoding"),
    errors.InvalidFieldError: Envelope(422, _CALLER, None),
    errors.InvalidKeyError: Envelope(401, _CALLER, "invalid_api_key"),
    errors.ModelNotFoundError: Envelope(400, _CALLER, "model_not_found"),
    errors.ModelPageNotFoundError: Envelope(404, _CALLER, "model_not_found"),
    errors.UnsupportedDimensionsError: Envelope(400, _CALLER, "unsupported_dimensions"),
    errors.UnknownPromptError: Envelope(400, _CALLER, "unknown_prompt"),
    errors.ContextLengthExceededError: Envelope(400, _CALLER, "context_length_exceeded"),
    errors.EmptyTextError: Envelope(422, _CALLER, "empty_input"),
    errors.TokenIdsNotAcceptedError: Envelope(400, _CALLER, "token_ids_not_accepted"),
    errors.UnsupportedTokenError: Envelope(400, _CALLER, "unsupported_token"),
    errors.OverloadedError: Envelope(429, "rate_limit_error", "server_overloaded"),
    # nginx's number for it; only a client that closed one direction alone can read it.
    errors.ClientGoneError: Envelope(499, _CALLER, "client_gone"),
    errors.EngineError: Envelope(500, _SERVER, "internal_error"),
    errors.NotReadyError: Envelope(503, _SERVER, "not_ready"),
    errors.DeadlineExceededError: Envelope(504, _SERVER, "deadline_exceeded"),
    errors.NonFiniteVectorError: Envelope(500, _SERVER, "internal_error"),
}

# What Flask and Werkzeug raise by themselves: status to code and message, with values of the configuration in it.
HTTP = {
    400: ("invalid_request", "the request is malformed; send a JSON object as an HTTP/1.1 POST"),
    404: (
        "not_found",
        "there is no such path; embeddings are at POST /v1/embeddings, the list of models at GET /v1/models",
    ),
    405: ("method_not_allowed", "this path does not take this method; the header Allow lists those that it takes"),
    413: (
        "body_too_large",
        "the body is over the {MAX_CONTENT_LENGTH} bytes that are taken; send fewer texts at once",
    ),
}
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "5"}}
_INTERNAL = ("internal_error", answer.INTERNAL)


def init_app(app: Flask) -> None:
    """Registers the handlers. What nobody foresaw reaches them as 500; where a debugger runs, it reaches that."""
    app.register_error_handler(errors.ServiceError, _of_ours)
    app.register_error_handler(HTTPException, _of_http)
    # Flask's own line would repeat the path, which can hold anything.
    app.log_exception = _log  # type: ignore[method-assign] # there is no other hook


def _of_ours(error: errors.ServiceError) -> Response:
    told = TABLE[type(error)]
    code, message = told.code, error.message
    if isinstance(error, errors.InvalidFieldError):
        code = error.code
    if told.status == 500:
        _log((type(error), error, error.__traceback__))
        message = _INTERNAL[1]
    response = _envelope(told.status, told.type, code, message, error.param)
    response.headers.update(_HEADERS.get(told.status, {}))
    if isinstance(error, errors.OverloadedError):
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


def _of_http(error: HTTPException) -> Response:
    status = error.code or 500
    if status >= 500:
        code, message = _INTERNAL
    elif status in HTTP:
        code, template = HTTP[status]
        message = template.format_map(current_app.config)
    else:
        code, message = error.name.lower().replace(" ", "_"), error.description or error.name
    response = _envelope(status, answer.type_of(status), code, message, None)
    response.headers.extend((name, value) for name, value in error.get_headers() if name != "Content-Type")
    return response


def _envelope(status: int, type_: str, code: str | None, message: str, param: str | None) -> Response:
    metrics.REFUSED.labels(code).inc()
    return answer.json(answer.failure(type_, code, message, param), status)


def _log(exc_info: Any) -> None:
    logger.error("request failed", exc_info=exc_info)
