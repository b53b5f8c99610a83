"""Flask and marshmallow stop here. A view loads the request, calls the engine and dumps the response."""

import orjson
from flask import Flask

from embedding_api.request import REQUEST, Request
from embedding_api.service import KEY, Service, service_of
from embedding_api.web import auth, error_handlers, observe
from embedding_api.web.openapi import document
from embedding_api.web.operation import request_schemas
from embedding_api.web.routes import docs, embeddings, health, metrics, models, openapi

# Every file of `routes/`.
ROUTES = (embeddings, models, health, metrics, openapi, docs)


def init_app(app: Flask, service: Service) -> None:
    """Give an application the service's routes, errors, keys, access log, traces and document."""
    app.extensions[KEY] = service
    # No route redirects: a client that does not follow redirects would get HTML.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.config["MAX_CONTENT_LENGTH"] = service.settings.max_body_bytes
    observe.init_app(app)
    auth.init_app(app)
    error_handlers.init_app(app)
    for module in ROUTES:
        app.register_blueprint(module.bp)
    app.extensions["request_schemas"] = request_schemas(app, service.settings, service.engine.models)
    app.extensions["openapi"] = orjson.dumps(document(app))


def rehearse(app: Flask) -> None:
    """Answer a request, and read a text on each route of a model; call it in a worker before its first request.

    A forked process is slow where it first writes to the memory of its parent.
    """
    with app.test_request_context("/health/live", environ_overrides={REQUEST: Request()}):
        # Not the whole application: what wraps it may count its requests.
        app.full_dispatch_request()
    for model in service_of(app).engine.models.models:
        for route in model.routes.values():
            route.reader.read(["rehearsal"], route.prompt)
