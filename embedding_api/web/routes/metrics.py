"""GET /metrics: what all workers count, for Prometheus."""

from collections.abc import Callable

from flask import Blueprint, Response, request
from prometheus_client import CollectorRegistry, exposition

from embedding_api.telemetry import counters

bp = Blueprint("metrics", __name__)


@bp.get("/metrics")
def show() -> Response:
    """The numbers in Prometheus' text format, or in OpenMetrics' if that is what the client accepts."""
    encode, content_type = _encoder(request.headers.get("Accept", ""))
    return Response(encode(counters.registry()), content_type=content_type)


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    try:
        return exposition.choose_encoder(accept)
    except (TypeError, ValueError):
        # It compares versions that may be none, such as abc.
        return exposition.choose_encoder("")
