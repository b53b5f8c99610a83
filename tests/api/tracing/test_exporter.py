"""Traces that cannot be sent, and settings of tracing that end the start with an error."""

import logging
import sys
import threading

import pytest

from embedding_api.app import create_app
from embedding_api.errors import SettingsError
from embedding_api.settings import load_settings
from tests.collector import collecting
from tests.conftest import until
from tests.fakes import fake_engine, fake_model
from tests.server.conftest import free_port


class TestAway:
    """Tests without a running collector."""

    @pytest.fixture
    def endpoint(self):
        return f"http://127.0.0.1:{free_port()}"

    def test_it_fails_no_request_and_costs_one_log_line_until_it_is_back(
        self, app, endpoint, caplog, monkeypatch, no_leaked_threads
    ):
        logged = lambda word: [record for record in caplog.records if word in record.getMessage()]  # noqa: E731
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        client = app.test_client()
        with caplog.at_level(logging.INFO):
            assert client.get("/v1/models").status_code == 200
            until(lambda: logged("traces do not arrive"), what="the line")
            for _ in range(20):
                assert client.get("/v1/models").status_code == 200
            with collecting(int(endpoint.rpartition(":")[2])) as collector:

                def arrived():
                    client.get("/v1/models")
                    return collector.spans and logged("traces arrive again")

                until(arrived, what="its return")
                app.extensions["embedding_api"].tracing.close()
        assert len(logged("traces do not arrive")) == 1
        assert "check the collector" in logged("traces do not arrive")[0].getMessage()


def test_a_hanging_collector_does_not_delay_the_end_of_a_process(client, app, collector, monkeypatch):
    monkeypatch.setattr(app.extensions["embedding_api"].tracing, "flush_s", 0.2)
    collector.proceed.clear()
    client.get("/v1/models")
    app.extensions["embedding_api"].tracing.close()
    assert not collector.proceed.is_set()
    assert any(thread.name == "last spans" for thread in threading.enumerate())
    collector.proceed.set()


def test_without_opentelemetrys_packages_the_start_is_refused_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "embedding_api.telemetry.tracing", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    with pytest.raises(SettingsError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT is set, but .*pip install opentelemetry-sdk"):
        create_app(load_settings(), fake_engine(fake_model()))


def test_malformed_headers_are_reported_without_showing_them(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "the-key")
    create_app(load_settings(), fake_engine(fake_model()))
    assert "Header format invalid!" in caplog.text
    assert "the-key" not in caplog.text


@pytest.mark.settings(OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20the-key%0aX")
def test_a_header_that_cannot_be_sent_is_reported_without_showing_it(client, caplog):
    assert client.get("/v1/models").status_code == 200
    until(lambda: "traces do not arrive" in caplog.text, deadline_s=20, what="the line")
    assert "InvalidHeader" in caplog.text
    assert "the-key" not in caplog.text


def test_a_redirect_counts_as_a_failure(client, collector, caplog):
    collector.status = 301
    assert client.get("/v1/models").status_code == 200
    until(lambda: "traces do not arrive" in caplog.text, deadline_s=20, what="the line")
    assert "TooManyRedirects" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "9" * 30),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "99999"),
    ],
)
def test_a_malformed_variable_of_opentelemetry_refuses_the_start(name, value, monkeypatch, no_leaked_threads):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv(name, value)
    with pytest.raises(
        SettingsError,
        match=r"OpenTelemetry rejects its settings .*correct or unset the variables that begin with OTEL_",
    ):
        create_app(load_settings(), fake_engine(fake_model()))
