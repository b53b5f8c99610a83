"""The id, the log line and the count of each request, also of one that never reaches Flask. No text, key or path."""

import logging
import re
import uuid
from http import HTTPMethod

from embedding_api.telemetry import log, metrics

logger = logging.getLogger(log.ACCESS)

# An id that a client may choose for its request. The OpenAPI document shows this pattern.
REQUEST_ID = r"[A-Za-z0-9._-]{1,128}"
# W3C's `traceparent`: version, trace, parent, flags. Version 00 has nothing after the flags, later versions may; ff is
# no version. OpenTelemetry is optional, and it warns about some malformed values.
_TRACEPARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.{0,400})?"
)
# A method or path that does not exist can be anything, a key included. The log and the counters show this instead.
UNKNOWN = "-"


def request_id(sent: str = "") -> str:
    """Return the id that the client sent, or a new one if it sent none or a malformed one."""
    return sent if re.fullmatch(REQUEST_ID, sent) else uuid.uuid4().hex


def trace_id(traceparent: str) -> str:
    """Return the trace id in a `traceparent` header; empty if the header is missing or malformed."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return match["trace"] if match else ""


def record(
    method: str,
    route: str,
    status: int,
    duration_s: float,
    *,
    code: str | None = None,
    level: int = logging.INFO,
    **computed: str | int,
) -> None:
    """Count a request and write its access line.

    Args:
        method: The HTTP method; any string.
        route: The rule of its route, such as `/v1/models/<path:model_id>`; empty if no route matched.
        status: The status of its response.
        duration_s: Seconds from its arrival to its response.
        code: The code of the error in its response, or None.
        level: The level of the line.
        computed: More fields of the line: `model`, `texts` and `tokens` if vectors were computed.
    """
    method = method if method in HTTPMethod.__members__ else UNKNOWN
    route = route or UNKNOWN
    if code is not None:
        metrics.REFUSED.labels(code).inc()
    metrics.REQUESTS.labels(route, method, status, computed.get("model", "")).inc()
    fields = {"method": method, "route": route, "status": status, "ms": round(duration_s * 1000, 1), **computed}
    logger.log(level, "request", extra={"fields": fields})
