"""GET /metrics: the counters of all workers, for Prometheus."""

from flask import Response, request
from prometheus_client import exposition

from embedding_api.telemetry.metrics import counters
from embedding_api.web.operation import STRING, Routes

bp = Routes("metrics")


@bp.serve("/metrics", content={"text/plain": STRING, "application/openmetrics-text": STRING})
def get_metrics() -> Response:
    """Return the counters of all workers, for Prometheus.

    The format is Prometheus' text format, or OpenMetrics if the request's Accept asks for it.
    """
    try:
        encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
    except (TypeError, ValueError):
        # It compares version numbers, and fails for a version such as abc.
        encode, content_type = exposition.choose_encoder("")
    return Response(encode(counters), content_type=content_type)
