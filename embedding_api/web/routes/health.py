"""Whether the service lives and can answer: GET /, /health/live, /health/ready and /health. Open to all."""

from flask import Blueprint, Response, current_app, request

from embedding_api import __version__
from embedding_api.errors import NotReadyError
from embedding_api.request import REFUSAL
from embedding_api.service import service_of
from embedding_api.web import json_body

bp = Blueprint("health", __name__)


@bp.get("/")
def index() -> Response:
    """Says what this is, how it is, and which models it serves."""
    engine = service_of(current_app).engine
    return json_body.response(
        {
            "service": "Memementor Embedding Service",
            "status": "unhealthy" if engine.problem() else "healthy",
            "version": __version__,
            "available_models": [model.name for model in engine.models.models],
        }
    )


@bp.get("/health/live")
def live() -> Response:
    """200 while the process can answer at all."""
    return json_body.response({"status": "live"})


@bp.get("/health/ready")
@bp.get("/health")
def ready() -> Response:
    """200 while the engine answers or has nothing to do; 503 with what is wrong otherwise, and while it drains."""
    if isinstance(refusal := request.environ.get(REFUSAL), NotReadyError):
        raise refusal
    problem = service_of(current_app).engine.problem()
    if problem is not None:
        raise NotReadyError(f"this worker is not ready: {problem}")
    return json_body.response({"status": "ready"})
