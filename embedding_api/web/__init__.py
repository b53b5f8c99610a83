"""The web room: Flask and marshmallow stop here. Views load, call the engine, and dump."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flask import Flask

from embedding_api.config import Settings
from embedding_api.engine.engine import Engine
from embedding_api.web import auth, docs, embeddings, envelope, health, metrics, models, observe, openapi
from embedding_api.web.parts import Parts
from embedding_api.web.schemas import EmbeddingRequest

if TYPE_CHECKING:
    # It is imported where traces are wanted, and may not be installed.
    from embedding_api.tracing import Tracing


def init_app(app: Flask, settings: Settings, engine: Engine, tracing: "Tracing | None" = None) -> None:
    """Gives an application its routes, errors, keys, access log, traces and document."""
    # No route redirects: a client that does not follow would get HTML.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    request = _embedding_request(settings, (name for model in engine.models.models for name in model.names))
    app.extensions["embedding_api"] = Parts(settings, engine, request, tracing)
    observe.init_app(app)
    auth.init_app(app)
    envelope.init_app(app)
    _add_routes(app)
    openapi.init_app(app, settings, request)


def openapi_document(settings: Settings) -> dict[str, Any]:
    """What GET /openapi.json answers under these settings, without any model loaded."""
    app = Flask("embedding_api", static_folder=None)
    _add_routes(app)
    names = (name for spec in settings.supported_models for name in spec.names)
    return openapi.document(app.url_map, settings, _embedding_request(settings, names))


def _add_routes(app: Flask) -> None:
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    for module in (health, models, metrics, embeddings, openapi, docs):
        app.register_blueprint(module.bp)


def _embedding_request(settings: Settings, model_names: Iterable[str]) -> EmbeddingRequest:
    return EmbeddingRequest(
        max_inputs=settings.max_inputs,
        accepts_token_ids=settings.token_ids == "model",  # noqa: S105 - tokens of texts, no password
        # Two models may have a name in common.
        known={"model": tuple(dict.fromkeys(model_names))},
    )
