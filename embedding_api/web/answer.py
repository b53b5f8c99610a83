"""JSON out."""

from typing import Any

import orjson
from flask import Response

INTERNAL = "something went wrong inside; the server's log has the story under this X-Request-ID"


def type_of(status: int) -> str:
    """The type of a failure that is known by its status alone."""
    return "server_error" if status >= 500 else "invalid_request_error"


def failure(type_: str, code: str | None, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of every failure, whoever tells it."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def json(body: Any, status: int = 200) -> Response:
    """A JSON response; numpy rows inside are written straight from their memory, as the shortest float32 digits."""
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), status, content_type="application/json")
