"""The one body of every failed request, whether Flask or the server's loop sends it. Imports only `errors`."""

from typing import Any, NamedTuple

from embedding_api.errors import TABLE, EngineError, ServiceError


class Failure(NamedTuple):
    """What a client sees of an error.

    Attributes:
        status: The HTTP status.
        code: The word for programs, which `body` has too.
        headers: Headers that belong to this error.
        body: The JSON body, in OpenAI's shape.
    """

    status: int
    code: str
    headers: dict[str, str]
    body: dict[str, Any]


def failure(error: Exception) -> Failure:
    """Return what a client sees of an error. One that is not in TABLE is an internal error."""
    shown = error if isinstance(error, ServiceError) and type(error) in TABLE else EngineError("")
    row = TABLE[type(shown)]
    code, message = shown.code or row.codes[0], shown.message
    if row.status == 500:
        message = "the server failed; its log has the cause under this X-Request-ID"
    body = {"error": {"message": message, "type": row.type, "param": shown.param, "code": code}}
    return Failure(row.status, code, {**row.headers, **shown.headers}, body)
