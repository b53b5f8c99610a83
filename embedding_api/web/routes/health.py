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


@bp.serve(
    "/",
    id="get_service",
    summary="The service, its status, its version and its models",
    schemas={"Service": _SERVICE},
)
def index() -> Response:
    """Return the service's name, status and version, and the names of its models."""
    engine = service_of(current_app).engine
    return json_body.response(
        {
            "service": "Memementor Embedding Service",
            "status": "unhealthy" if engine.problem() else "healthy",
            "version": __version__,
            "available_models": [model.name for model in engine.models.models],
        }
    )


@bp.serve(
    "/health/live",
    id="get_live",
    summary="Liveness: 200 while the process can respond at all",
    schemas={"Live": object_schema(status={"const": "live"})},
)
def live() -> Response:
    """Return 200."""
    return json_body.response({"status": "live"})


@bp.serve(
    "/health/ready",
    aliases={"/health": "get_health"},
    id="get_ready",
    summary="Readiness: 200 while the engine responds or is idle",
    description="Each worker reports for itself alone. 503 while the server stops.",
    schemas={"Ready": object_schema(status={"const": "ready"})},
    failures=[NotReadyError],
)
def ready() -> Response:
    """Return 200, or raise what keeps this worker from embedding."""
    problem = service_of(current_app).engine.problem()
    if problem is not None:
        raise NotReadyError(f"this worker is not ready: {problem}; try again after the seconds in Retry-After")
    return json_body.response({"status": "ready"})
