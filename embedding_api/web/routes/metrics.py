"""GET /metrics: the counters of all workers, for Prometheus."""

from collections.abc import Callable

from flask import Response, request
from prometheus_client import CollectorRegistry, exposition

from embedding_api.telemetry.metrics import counters
from embedding_api.web.operation import STRING, Routes

bp = Routes("metrics")


@bp.serve("/metrics", content={"text/plain": STRING, "application/openmetrics-text": STRING})
def get_metrics() -> Response:
    """Return the counters of all workers, for Prometheus.

    The format is Prometheus' text format, or OpenMetrics if the request's Accept asks for it.
    """
    encode, content_type = _encoder(request.headers.get("Accept", ""))
    return Response(encode(counters.registry()), content_type=content_type)


def _encoder(accept: str) -> tuple[Callable[[CollectorRegistry], bytes], str]:
    try:
        return exposition.choose_encoder(accept)
    except (TypeError, ValueError):
        # It compares version numbers, and fails for a version such as abc.
        return exposition.choose_encoder("")
