"""JSON bodies, in and out. A request's Content-Type does not matter."""

import gc
import io
import re
from typing import Any

import orjson
from flask import Response, request
from werkzeug.exceptions import ClientDisconnected

from embedding_api.errors import InvalidBodyError, InvalidJsonError, UnsupportedEncodingError
from embedding_api.request import REQUEST, Request

# Encodings of a body that need no decoding here: the server removes chunks.
_PLAIN_ENCODINGS = {"Content-Encoding": ("", "identity"), "Transfer-Encoding": ("", "chunked")}
_TYPES = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "an object"}
# Escaped surrogates, in pairs or alone. A backslash that is escaped itself begins no escape.
_SURROGATES = re.compile(
    rb"(?<!\\)(?:\\\\)*\\u(?:d[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}|(?P<lone>d[89a-f][0-9a-f]{2}))", re.IGNORECASE
)


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
        return _loads(body)
    except orjson.JSONDecodeError:
        try:
            body.decode()
            return _loads(_without_lone_surrogates(body))
        # Both messages have the position and the reason, and repeat nothing of the body but one byte.
        except UnicodeDecodeError as error:
            raise InvalidJsonError(
                f"the body is not UTF-8: byte {error.start} is 0x{body[error.start]:02x} ({error.reason}); send JSON "
                "in UTF-8, uncompressed"
            ) from error
        except orjson.JSONDecodeError as error:
            raise InvalidJsonError(f"the body is not JSON: {error}; correct it and send it again") from error


def _loads(body: bytes) -> Any:
    """Parse JSON without Python's collector, which would look through millions of new arrays again and again.

    33 MB of nested arrays took 7 s with it and take 2 s without, and the worker stands still meanwhile.
    """
    gc.disable()
    try:
        return orjson.loads(body)
    finally:
        gc.enable()


def _without_lone_surrogates(body: bytes) -> bytes:
    r"""Replace halves of surrogate pairs, such as "\ud800" from JavaScript, with U+FFFD. All else keeps its place."""
    replaced = bytearray(body)
    for match in _SURROGATES.finditer(body):
        if match["lone"]:
            replaced[match.start("lone") : match.end("lone")] = b"fffd"
    return bytes(replaced)
