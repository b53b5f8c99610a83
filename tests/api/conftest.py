"""The application with a fake model behind it; pytest-flask makes the client."""

import functools
import json

import pytest
import pytest_flask.plugin
import schemathesis
from flask.testing import FlaskClient
from werkzeug.exceptions import HTTPException

from embedding_api.app import create_app
from embedding_api.settings import load_settings
from embedding_api.telemetry import log
from embedding_api.web.operation import openapi_path
from tests.fakes import fake_engine, fake_model, fake_route

MODEL = "org/fake"


@pytest.fixture(autouse=True)
def _push_request_context():
    """Replace pytest-flask's fixture, which shares `flask.g` between the requests of a test."""
    assert hasattr(pytest_flask.plugin, "_push_request_context"), "pytest-flask renamed what this overrides"


@pytest.fixture
def model():
    return fake_model(MODEL, names=(MODEL, "alias"))


@functools.cache
def api(document: bytes):
    """Return a document as schemathesis reads it."""
    return schemathesis.openapi.from_dict(json.loads(document))


class Client(FlaskClient):
    """A client that accepts only responses that the application's OpenAPI document describes."""

    def open(self, *args, **options):
        response = super().open(*args, **options)
        asked, app = response.request, self.application
        try:
            rule, _ = app.url_map.bind_to_environ(asked.environ).match(return_rule=True)
        except HTTPException:
            return response
        paths = api(app.extensions["openapi"])
        if openapi_path(rule.rule) in set(paths):
            operation = paths[openapi_path(rule.rule)]["GET" if asked.method == "HEAD" else asked.method]
            described = operation.responses.find_by_status_code(response.status_code)
            assert described is not None, f"{response.status_code} is not in the document"
            required = {name for name, header in described.headers.items() if header.is_required}
            assert required <= set(response.headers.keys())
            if asked.method != "HEAD":
                operation.validate_response(response)
        return response


@pytest.fixture
def app(request, clean_settings, no_leaked_threads, monkeypatch, model):
    marker = request.node.get_closest_marker("settings")
    environment = marker.kwargs if marker else {}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    # A model without prompts.
    other = fake_model("org/other", routes={None: fake_route(prompts={})})
    engine = fake_engine(model, other, accepts_token_ids=settings.token_ids == "model")
    app = create_app(settings, engine)
    app.test_client_class = Client
    yield app
    engine.close()


@pytest.fixture
def of_request(caplog):
    """The captured log, each record with the ids of its request."""
    caplog.handler.addFilter(log.add_ids)
    with caplog.at_level("DEBUG"):
        yield caplog
    caplog.handler.removeFilter(log.add_ids)


@pytest.fixture
def post(client):
    """Return a function that posts to /v1/embeddings: bytes unchanged, or a dictionary with the model added."""

    def post(body=None, *, path="/v1/embeddings", headers=None, **fields):
        if isinstance(body, bytes):
            return client.post(path, data=body, headers=headers)
        return client.post(path, json={"model": MODEL, **(body or {}), **fields}, headers=headers)

    return post
