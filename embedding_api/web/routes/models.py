"""GET /v1/models: the models that are served, in the shape of OpenAI's API, with more fields about each."""

import dataclasses
from typing import Any

from flask import Response, current_app

from embedding_api.engine.models.registry import Model
from embedding_api.errors import NotFoundError
from embedding_api.service import service_of
from embedding_api.web import json_body
from embedding_api.web.operation import STRING, Routes, object_schema
from embedding_api.web.request_schema import model_names

bp = Routes("models")

_PROOF = object_schema(
    measure={
        **STRING,
        "description": "How its vectors were compared with those of `SentenceTransformer.encode` at start-up: "
        "largest_difference of any component, as a share of the vector's length, or cosine of the worst text.",
    },
    value={"type": "number"},
    bound={"type": "number", "description": "The server refuses to serve a model beyond this bound."},
)
_MODEL = object_schema(
    id={**STRING, "description": "Its public name."},
    object={"const": "model"},
    created={"type": "integer", "description": "When it was loaded, in seconds since 1970."},
    owned_by={**STRING, "description": "The organisation on the hub, or local."},
    dimensions={"type": "integer", "minimum": 1, "description": "Components of its vectors."},
    max_input_tokens={"type": ["integer", "null"], "description": "Its window; null if it has none."},
    prompts={"type": "object", "additionalProperties": STRING, "description": "Its prompts by name."},
    backend={**STRING, "description": "The backend that computes it."},
    precision={**STRING, "description": "The arithmetic that the backend computes in."},
    proof="Proof",
)
_MODELS = object_schema(object={"const": "list"}, data={"type": "array", "minItems": 1, "items": "Model"})


@bp.serve(
    "/v1/models",
    aliases={"/models": "list_models_alias"},
    schemas={"Models": _MODELS, "Model": _MODEL, "Proof": _PROOF},
)
def list_models() -> Response:
    """Return the models that are served, in the configured order."""
    models = service_of(current_app).engine.models.models
    return json_body.response({"object": "list", "data": [_dump(model) for model in models]})


@bp.serve(
    "/v1/models/<path:model_id>",
    aliases={"/models/<path:model_id>": "get_model_alias"},
    schemas={"Model": _MODEL, "Proof": _PROOF},
    failures=[NotFoundError],
    path_values=model_names,
)
def get_model(model_id: str) -> Response:
    """Return one model, by its name or alias."""
    model = service_of(current_app).engine.models.find(model_id)
    if model is None:
        raise NotFoundError(
            f"this server does not serve a model {model_id[:100]!r}; GET /v1/models lists its models",
            code="model_not_found",
        )
    return json_body.response(_dump(model))


def _dump(model: Model) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.loaded_at,
        "owned_by": model.owner,
        "dimensions": model.dimensions,
        "max_input_tokens": model.window,
        "prompts": {name: prompt.text for name, prompt in model.route.prompts.items()},
        "backend": model.backend,
        "precision": model.precision,
        "proof": dataclasses.asdict(model.proof),
    }
