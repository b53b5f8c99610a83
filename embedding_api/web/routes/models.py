"""GET /v1/models: what is served, as OpenAI's API has it, with what we know of each model."""

import dataclasses
from typing import Any

from flask import Blueprint, Response

from embedding_api.engine.models.registry import Model
from embedding_api.errors import ModelPageNotFoundError
from embedding_api.web import answer
from embedding_api.web.parts import parts

bp = Blueprint("models", __name__)


@bp.get("/v1/models")
@bp.get("/models")
def index() -> Response:
    """Lists the models in the configured order."""
    return answer.json({"object": "list", "data": [_dump(model) for model in parts().engine.models.models]})


@bp.get("/v1/models/<path:model_id>")
@bp.get("/models/<path:model_id>")
def show(model_id: str) -> Response:
    """Describes one model, by its name or alias."""
    model = parts().engine.models.find(model_id)
    if model is None:
        raise ModelPageNotFoundError(
            f"model {model_id[:100]!r} is not served here; GET /v1/models lists those that are"
        )
    return answer.json(_dump(model))


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
