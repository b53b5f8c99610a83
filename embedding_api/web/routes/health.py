"""GET /, /health/live, /health/ready and /health: what the service is, and its health. No route here needs a key."""

from flask import Response, current_app

from embedding_api import __version__
from embedding_api.errors import NotReadyError
from embedding_api.service import service_of
from embedding_api.web import json_body
from embedding_api.web.operation import STRING, Routes, object_schema

bp = Routes("health")

_SERVICE = object_schema(
    service=STRING,
    status={**STRING, "enum": ["healthy", "unhealthy"]},
    version=STRING,
    available_models={"type": "array", "minItems": 1, "items": STRING},
)


@bp.serve("/", schemas={"Service": _SERVICE})
def get_service() -> Response:
    """Return the name, status and version of the service, and the names of its models."""
    engine = service_of(current_app).engine
    return json_body.response(
        {
            "service": "Memementor Embedding Service",
            "status": "unhealthy" if engine.problem() else "healthy",
            "version": __version__,
            "available_models": [model.name for model in engine.models.models],
        }
    )


@bp.serve("/health/live", schemas={"Live": object_schema(status={"const": "live"})})
def get_live() -> Response:
    """Return 200 while the process can respond at all (liveness)."""
    return json_body.response({"status": "live"})


@bp.serve(
    "/health/ready",
    aliases={"/health": "get_health"},
    schemas={"Ready": object_schema(status={"const": "ready"})},
    failures=[NotReadyError],
)
def get_ready() -> Response:
    """Return 200 while the engine responds or is idle (readiness).

    Each worker reports for itself alone. 503 while the server stops.
    """
    problem = service_of(current_app).engine.problem()
    if problem is not None:
        raise NotReadyError(f"this worker is not ready: {problem}; try again after the seconds in Retry-After")
    return json_body.response({"status": "ready"})
