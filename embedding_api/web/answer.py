"""JSON out."""

from typing import Any

import orjson
from flask import Response


def json(body: Any, status: int = 200) -> Response:
    """A JSON response; numpy rows inside are written straight from their memory, as the shortest float32 digits."""
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), status, content_type="application/json")
