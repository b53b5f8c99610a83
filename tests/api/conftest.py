"""The application with a fake model behind it; pytest-flask makes the client."""

import pytest
import pytest_flask.plugin

from embedding_api.app import create_app
from embedding_api.config import load_settings
from tests.fakes import fake_engine, fake_model

MODEL = "org/fake"


@pytest.fixture(autouse=True)
def _push_request_context():
    """Overrides pytest-flask's own, which shares `flask.g` between the calls of a test."""
    assert hasattr(pytest_flask.plugin, "_push_request_context"), "pytest-flask renamed what this overrides"


@pytest.fixture
def model():
    return fake_model(MODEL, names=(MODEL, "alias"))


@pytest.fixture
def app(request, clean_settings, no_leaked_threads, monkeypatch, model):
    marker = request.node.get_closest_marker("settings")
    environment = marker.kwargs if marker else {}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    engine = fake_engine(model, fake_model("org/other"), accepts_token_ids=settings.token_ids == "model")
    yield create_app(settings, engine)
    engine.close()


@pytest.fixture
def post(client):
    """Posts a body to /v1/embeddings, with the model filled in where it is a dictionary."""

    def post(body=None, *, path="/v1/embeddings", headers=None, **fields):
        if isinstance(body, bytes):
            return client.post(path, data=body, headers=headers)
        return client.post(path, json={"model": MODEL, **(body or {}), **fields}, headers=headers)

    return post
