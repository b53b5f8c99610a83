"""JSON in: the request's body as an object, whatever its Content-Type says."""

import json
from typing import Any

import orjson
from flask import request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from embedding_api.errors import InvalidBodyError, InvalidJsonError, UnsupportedEncodingError

# What the server and Flask raise while a body is read: it broke off, or its chunks are malformed.
_BROKEN = (ClientDisconnected, ParseException, OSError)

# The headers that say how a body is encoded, and what changes nothing about it. The server takes chunks apart.
_ENCODINGS = {"Content-Encoding": ("", "identity"), "Transfer-Encoding": ("", "chunked")}


def read() -> dict[str, Any]:
    """The body, parsed.

    Raises:
        UnsupportedEncodingError: It is compressed.
        InvalidBodyError: It breaks off, or its chunks are malformed.
        InvalidJsonError: It is not a JSON object in UTF-8.
    """
    for header, known in _ENCODINGS.items():
        encoding = request.headers.get(header, "").strip().lower()
        if encoding not in known:
            raise UnsupportedEncodingError(f"{header} {encoding[:40]!r} is not understood; send the body uncompressed")
    try:
        body = request.get_data(cache=False)
        if len(body) < (request.content_length or 0):
            raise ClientDisconnected
        # A chunked body is silently cut where it may not go on.
        if request.content_length is None and _rest_can_be_read() and request.environ["wsgi.input"].read(1):
            raise RequestEntityTooLarge
    except _BROKEN as error:
        raise InvalidBodyError("the body broke off or its chunks are malformed; send it again") from error
    document = _parse(body)
    if not isinstance(document, dict):
        raise InvalidJsonError(f"the body must be a JSON object, not {_JSON_TYPES.get(type(document), 'null')}")
    return document


_JSON_TYPES = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}


def _parse(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        try:
            return _parse_lone_surrogates(body)
        except (ValueError, RecursionError):
            # orjson says where and why, and quotes nothing of the body.
            raise InvalidJsonError(f"the body is not valid JSON in UTF-8: {error}") from error


def _parse_lone_surrogates(body: bytes) -> Any:
    r"""JSON with halves of surrogate pairs, such as "\ud800" from JavaScript, each replaced with U+FFFD.

    Raises:
        ValueError: That was not what is wrong with it.
    """
    if b"\\u" not in body:
        raise ValueError("there is no escaped surrogate")
    text = json.dumps(json.loads(body.decode()), ensure_ascii=False)
    return orjson.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))


def _rest_can_be_read() -> bool:
    """Whether the body's end is marked; where it is not, as in the development server, reading on waits for ever."""
    return bool(request.environ.get("wsgi.input_terminated"))
