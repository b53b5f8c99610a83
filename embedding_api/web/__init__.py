"""The web room: Flask and marshmallow stop here. Views load, call the engine, and dump."""

from typing import Any

from flask import Flask

from embedding_api.engine.models.registry import Registry
from embedding_api.service import KEY, Service
from embedding_api.settings import Settings
from embedding_api.web import auth, error_handlers, observe, openapi
from embedding_api.web.routes import docs, embeddings, health, metrics, models
from embedding_api.web.schemas import EmbeddingRequest


def init_app(app: Flask, service: Service) -> None:
    """Gives an application its routes, errors, keys, access log, traces and document."""
    # No route redirects: a client that does not follow would get HTML.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = service.settings.max_body_bytes
    request = _embedding_request(service.settings, service.engine.models)
    app.extensions[KEY] = service
    app.extensions["embedding_request"] = request
    observe.init_app(app)
    auth.init_app(app)
    error_handlers.init_app(app)
    _add_routes(app)
    openapi.init_app(app, service.settings, request)


def openapi_document(settings: Settings, models: Registry) -> dict[str, Any]:
    """What GET /openapi.json answers under these settings, with these models."""
    app = Flask("embedding_api", static_folder=None)
    _add_routes(app)
    return openapi.document(app.url_map, settings, _embedding_request(settings, models))


def _add_routes(app: Flask) -> None:
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    for module in (health, models, metrics, embeddings, openapi, docs):
        app.register_blueprint(module.bp)


def _embedding_request(settings: Settings, models: Registry) -> EmbeddingRequest:
    known = {
        "model": (name for model in models.models for name in model.names),
        "prompt_name": (name for model in models.models for name in model.route.prompts),
    }
    return EmbeddingRequest(
        max_inputs=settings.max_inputs,
        accepts_token_ids=settings.token_ids == "model",  # noqa: S105 - tokens of texts, no password
        # Two models may have a name in common.
        known={field: tuple(dict.fromkeys(names)) for field, names in known.items()},
    )
