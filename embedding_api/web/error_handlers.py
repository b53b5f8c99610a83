"""Every error in the one body: those of `errors.py`, those of Flask and Werkzeug, and bugs."""

import logging
from typing import Any

from flask import Flask, Response, current_app, g
from werkzeug.exceptions import BadHost, HTTPException
from werkzeug.routing import WebsocketMismatch

from embedding_api import errors
from embedding_api.web import json_body

logger = logging.getLogger(__name__)

# What Werkzeug finds wrong with headers.
_FAULTS: dict[type[HTTPException], str] = {
    WebsocketMismatch: "the header Upgrade asks for a WebSocket, which this service does not speak; leave it out",
    BadHost: "the header Host is no host name: one of its parts is empty or longer than 63 characters; correct it",
}


def init_app(app: Flask) -> None:
    """Register the handlers. A bug becomes a 500, except under a debugger, which gets the exception itself."""
    app.register_error_handler(errors.ServiceError, _handle)
    # Bugs come here, too, after Flask has logged them.
    app.register_error_handler(HTTPException, lambda error: _respond(_translate(error)))
    # Flask's own line repeats the path, which can hold anything.
    app.log_exception = _log  # type: ignore[method-assign] # Flask has no other hook


def _handle(error: errors.ServiceError) -> Response:
    if error.status == 500:
        _log((type(error), error, error.__traceback__))
    return _respond(error)


def _respond(error: errors.ServiceError) -> Response:
    # For the counters; see `observe`.
    g.error_code = error.code
    response = json_body.response(error.body, error.status)
    response.headers.update(error.headers)
    return response


def _translate(error: HTTPException) -> errors.ServiceError:
    """Return our error for one that Flask or Werkzeug raised."""
    match error.code:
        case 404:
            paths = "embeddings are at POST /v1/embeddings, the list of models at GET /v1/models"
            return errors.NotFoundError(f"there is no such path; {paths}")
        case 405:
            methods = dict(error.get_headers()).get("Allow", "")
            return errors.MethodNotAllowedError(f"this path accepts no such method; send {methods}", allowed=methods)
        case 413:
            limit = f"{current_app.config['MAX_CONTENT_LENGTH']} bytes"
            return errors.BodyTooLargeError(f"the body is larger than {limit}; send fewer texts in one request")
        case int(status) if status < 500:
            fault = _FAULTS.get(type(error), "the request is malformed; send a JSON object as an HTTP/1.1 POST")
            return errors.InvalidRequestError(fault)
    return errors.EngineError(error.name)


def _log(exc_info: Any) -> None:
    logger.error("request failed", exc_info=exc_info)
