"""GET /metrics: what all workers count, for Prometheus."""

import struct

from flask import Blueprint, Response, request
from prometheus_client import exposition

from embedding_api import metrics

bp = Blueprint("metrics", __name__)


@bp.get("/metrics")
def show() -> Response:
    """The numbers in Prometheus' text format, or in OpenMetrics' if that is what the client accepts."""
    encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
    try:
        told = encode(metrics.registry())
    except struct.error:
        # A worker that has just begun was making its file.
        told = encode(metrics.registry())
    return Response(told, content_type=content_type)
