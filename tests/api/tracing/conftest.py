"""A service that sends its traces to a collector."""

import os

import pytest

from embedding_api.app import create_app
from embedding_api.settings import load_settings
from tests.collector import collecting
from tests.fakes import fake_engine


@pytest.fixture(autouse=True)
def _variables(monkeypatch, clean_settings, request):
    """Replace OpenTelemetry's variables by a short delay and those of the test; use no proxy for loopback."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    if marker := request.node.get_closest_marker("settings"):
        for name, value in marker.kwargs.items():
            monkeypatch.setenv(name, value)


@pytest.fixture
def collector(no_leaked_threads):
    with collecting() as collector:
        yield collector


@pytest.fixture
def endpoint(collector):
    return collector.endpoint


@pytest.fixture
def app(_variables, endpoint, monkeypatch, model):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    engine = fake_engine(model)
    app = create_app(load_settings(), engine)
    yield app
    app.extensions["embedding_api"].tracing.close()
    engine.close()
