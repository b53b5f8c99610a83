"""GET /v1/models: what is served, as OpenAI's API has it, with what we know of each model."""

import dataclasses
from typing import Any

from flask import Blueprint, Response, current_app

from embedding_api.engine.models.registry import Model
from embedding_api.errors import NotFoundError
from embedding_api.service import service_of
from embedding_api.web import json_body

bp = Blueprint("models", __name__)


@bp.get("/v1/models")
@bp.get("/models")
def index() -> Response:
    """Lists the models in the configured order."""
    models = service_of(current_app).engine.models.models
    return json_body.response({"object": "list", "data": [_dump(model) for model in models]})


@bp.get("/v1/models/<path:model_id>")
@bp.get("/models/<path:model_id>")
def show(model_id: str) -> Response:
    """Describes one model, by its name or alias."""
    model = service_of(current_app).engine.models.find(model_id)
    if model is None:
        raise NotFoundError(
            f"model {model_id[:100]!r} is not served here; GET /v1/models lists those that are",
            code="model_not_found",
        )
    return json_body.response(_dump(model))


def _dump(model: Model) -> dict[str, Any]:
    route = model.route
    return {
        "id": model.name,
        "object": "model",
        "created": model.loaded_at,
        "owned_by": model.owner,
        "dimensions": route.backend.dim,
        "max_input_tokens": route.reader.window,
        "prompts": {name: prompt.text for name, prompt in route.prompts.items()},
        "backend": route.backend.name,
        "precision": route.backend.precision,
        "proof": dataclasses.asdict(model.proof),
    }
