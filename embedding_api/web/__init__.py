"""The web room: Flask and marshmallow stop here. Views load, call the engine, and dump."""

from flask import Flask

from embedding_api.config import Settings
from embedding_api.engine.engine import Engine
from embedding_api.web import auth, embeddings, envelope, health, metrics, models, observe, schemas
from embedding_api.web.parts import Parts


def init_app(app: Flask, settings: Settings, engine: Engine) -> None:
    """Gives an application its routes, errors, keys and access log."""
    # No route redirects: a client that does not follow would get HTML.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    app.extensions["embedding_api"] = Parts(settings, engine, schemas.EmbeddingRequest(max_inputs=settings.max_inputs))
    observe.init_app(app)
    auth.init_app(app)
    envelope.init_app(app)
    for module in (health, models, metrics, embeddings):
        app.register_blueprint(module.bp)
