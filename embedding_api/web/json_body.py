"""JSON bodies, in and out. A request's Content-Type does not matter."""

import io
import json
from typing import Any

import orjson
from flask import Response, request
from werkzeug.exceptions import ClientDisconnected

from embedding_api.errors import InvalidBodyError, InvalidJsonError, UnsupportedEncodingError
from embedding_api.request import REQUEST, Request

# Encodings of a body that need no decoding here: the server removes chunks.
_PLAIN_ENCODINGS = {"Content-Encoding": ("", "identity"), "Transfer-Encoding": ("", "chunked")}
_TYPES = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "an object"}


def response(body: Any, status: int = 200) -> Response:
    """Return a JSON response. The float32 values of numpy rows get as many digits as they need."""
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), status, content_type="application/json")


def type_name(value: Any) -> str:
    """Return the JSON type of a parsed value, for error messages."""
    return _TYPES.get(type(value), "null")


def load() -> dict[str, Any]:
    """Return the body of the current request as an object.

    Raises:
        UnsupportedEncodingError: The body is compressed.
        InvalidBodyError: The body is incomplete, or its chunks are malformed.
        RequestEntityTooLarge: The body is larger than MAX_BODY_BYTES.
        InvalidJsonError: The body is not a JSON object in UTF-8.
    """
    for header, known in _PLAIN_ENCODINGS.items():
        encoding = request.headers.get(header, "").strip().lower()
        if encoding not in known:
            raise UnsupportedEncodingError(f"{header} {encoding[:40]!r} is not supported; send the body uncompressed")
    document = _parse(_read())
    if not isinstance(document, dict):
        raise InvalidJsonError(f"the body is {type_name(document)}; send a JSON object")
    return document


def _read() -> bytes:
    """Return the body that the worker holds, without a copy. Read it where another server runs the application."""
    record: Request | None = request.environ.get(REQUEST)
    if record is not None and isinstance(record.body, io.BytesIO):
        return record.body.getvalue()
    try:
        body = request.get_data(cache=False)
    except (ClientDisconnected, OSError) as error:
        raise InvalidBodyError("the body is incomplete or its chunks are malformed; send the request again") from error
    if len(body) < (request.content_length or 0):
        raise InvalidBodyError("the body is incomplete; send the request again")
    return body


def _parse(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        try:
            return _parse_lone_surrogates(body)
        except (ValueError, RecursionError):
            # orjson's message has the position and the reason, and repeats nothing of the body.
            raise InvalidJsonError(f"the body is not JSON in UTF-8: {error}; correct it and send it again") from error


def _parse_lone_surrogates(body: bytes) -> Any:
    r"""Parse JSON with halves of surrogate pairs, such as "\ud800" from JavaScript, and replace each with U+FFFD.

    Raises:
        ValueError: The body has another fault.
    """
    if b"\\u" not in body:
        raise ValueError("there is no escaped surrogate")
    text = json.dumps(json.loads(body.decode()), ensure_ascii=False)
    return orjson.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
