"""GET /metrics: what all workers count, for Prometheus."""

from flask import Blueprint, Response, request
from prometheus_client import exposition

from embedding_api import metrics

bp = Blueprint("metrics", __name__)


@bp.get("/metrics")
def show() -> Response:
    """The numbers in Prometheus' text format, or in OpenMetrics' if that is what the client accepts."""
    encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(metrics.registry()), content_type=content_type)
