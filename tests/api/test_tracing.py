"""Spans of requests, as a collector receives them."""

import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedding_api.app import create_app
from embedding_api.errors import SettingsError
from embedding_api.settings import load_settings
from embedding_api.telemetry.metrics import counters
from embedding_api.web import spans
from tests.api.conftest import MODEL
from tests.collector import collecting
from tests.conftest import until
from tests.fakes import fake_engine, fake_model
from tests.server.conftest import free_port

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def _variables(monkeypatch, clean_settings, request):
    """Remove OpenTelemetry's variables, except a short delay and those of the test; use no proxy for loopback."""
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


def test_a_request_is_a_span_with_its_stages_below(post, collector):
    post(input=["a cat", "tax law"], headers={"X-Request-ID": "id-1"})
    (request,) = collector.requests()
    assert request.name == "POST /v1/embeddings"
    assert request.parent_id == ""
    assert not request.is_error
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/embeddings",
        "http.response.status_code": 200,
        "http.response.header.x-request-id": ["id-1"],
        "url.scheme": "http",
        "server.address": "127.0.0.1",
        "server.port": 8000,
        "gen_ai.operation.name": "embeddings",
        "gen_ai.request.model": MODEL,
        "gen_ai.usage.input_tokens": 8,
        "gen_ai.embeddings.dimension.count": 8,
        "texts": 2,
    }
    below = collector.below(request)
    ((tokenize,), (queue,), (inference,)) = (below[name] for name in ("tokenize", "queue", "inference"))
    assert request.start_ns <= tokenize.start_ns <= tokenize.end_ns == queue.start_ns
    assert queue.end_ns == inference.start_ns <= inference.end_ns <= request.end_ns
    (batch,) = collector.below(inference)["batch"]
    assert inference.start_ns == batch.start_ns <= batch.end_ns <= inference.end_ns
    assert batch.attributes["batch.id"].startswith(f"{os.getpid()}-")
    assert (batch.attributes["batch.texts"], batch.attributes["batch.tokens"]) == (2, 8)
    assert {span.trace_id for span in collector.spans} == {request.trace_id}


def test_the_service_has_its_own_name_by_default(client, collector, monkeypatch):
    client.get("/v1/models")
    assert collector.requests()[0].resource["service.name"] == "memementor-embedding-service"


@pytest.mark.parametrize(
    "_",
    [
        pytest.param(None, marks=pytest.mark.settings(OTEL_SERVICE_NAME="other")),
        pytest.param(None, marks=pytest.mark.settings(OTEL_RESOURCE_ATTRIBUTES="service.name=other,deployment=x")),
    ],
)
def test_opentelemetrys_own_variables_count(_, client, collector):
    client.get("/v1/models")
    assert collector.requests()[0].resource["service.name"] == "other"


def test_two_requests_that_shared_a_batch_show_the_same(app, collector, model):
    model.route.backend.proceed.clear()

    def ask(text):
        return app.test_client().post("/v1/embeddings", json={"model": MODEL, "input": text}).status_code

    with ThreadPoolExecutor(3) as clients:
        first = clients.submit(ask, "a")
        assert model.route.backend.entered.wait(30)
        others = [clients.submit(ask, text) for text in ("cat", "law")]
        waiting = counters.registry().get_sample_value
        until(lambda: waiting("embeddings_queue_tokens") == 6, what="both in the queue")
        model.route.backend.proceed.set()
        assert {future.result() for future in (first, *others)} == {200}
    ids = []
    for request in collector.requests(3):
        (inference,) = collector.below(request)["inference"]
        ids += [batch.attributes["batch.id"] for batch in collector.below(inference)["batch"]]
    assert sorted(map(ids.count, ids)) == [1, 2, 2]


def test_an_incoming_trace_goes_on_here(client, collector):
    client.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    (request,) = collector.requests()
    assert (request.trace_id, request.parent_id) == (TRACE, PARENT)


def test_a_trace_that_is_not_recorded_is_not_recorded_here(client, post, collector, caplog):
    post(input="a cat", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    client.get("/v1/models")
    (request,) = collector.requests()
    assert request.name == "GET /v1/models"
    assert request.trace_id != TRACE


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [("/v1/embeddings", {"input": ""}, 422), ("/embeddings", {"input": "a", "model": "no"}, 400)],
)
def test_a_refused_request_is_a_span_without_parts_and_no_error_of_ours(post, collector, path, fields, status):
    assert post(path=path, **fields).status_code == status
    (request,) = collector.requests()
    assert (request.name, request.attributes["http.response.status_code"]) == (f"POST {path}", status)
    assert not request.is_error
    assert collector.spans == [request]


def test_a_failed_request_is_an_error_and_shows_the_stages_that_it_reached(post, collector, model):
    model.route.backend.error = RuntimeError("inner details")
    assert post(input=["a", "cat"]).status_code == 500
    (request,) = collector.requests()
    assert request.is_error
    assert request.attributes["error.type"] == "500"
    (inference,) = collector.below(request)["inference"]
    # Both together, and then each alone until one has failed.
    assert inference.attributes["batches"] == len(collector.below(inference)["batch"]) >= 2


def test_a_timed_out_request_shows_where_it_waited(app, post, collector, model):
    model.route.backend.proceed.clear()
    assert post(input="a", headers={"X-Stainless-Read-Timeout": "0.2"}).status_code == 504
    assert post(input="cat", headers={"X-Stainless-Read-Timeout": "0.2"}).status_code == 504
    model.route.backend.proceed.set()
    worked, waited = collector.requests(2)
    (inference,) = collector.below(worked)["inference"]
    (batch,) = collector.below(inference)["batch"]
    assert batch.attributes["batch.ended"] is False
    assert set(collector.below(waited)) == {"tokenize", "queue"}
    (queue,) = collector.below(waited)["queue"]
    assert queue.end_ns - queue.start_ns > 1e8


def test_a_request_refused_for_a_long_text_has_no_queue_span(post, collector):
    assert post(input="a " * 99, truncate=False).status_code == 400
    (request,) = collector.requests()
    assert set(collector.below(request)) == {"tokenize"}


def test_of_many_batches_the_first_have_spans_and_all_are_counted(post, collector, monkeypatch):
    monkeypatch.setattr(spans, "MAX_BATCH_SPANS", 2)
    assert post(input=[f"{'a ' * n}{'cat ' * m}" for n in range(1, 13) for m in range(1, 5)]).status_code == 200
    (request,) = collector.requests()
    (inference,) = collector.below(request)["inference"]
    assert len(collector.below(inference)["batch"]) == 2 < inference.attributes["batches"]


def test_health_checks_and_unknown_paths_make_no_spans(client, collector):
    for path in ("/", "/health", "/health/live", "/health/ready", "/nope"):
        client.get(path)
    client.get("/v1/embeddings")
    client.get("/models")
    (request,) = collector.requests()
    assert request.name == "GET /models"


def test_no_text_key_path_or_header_is_in_a_span(client, collector, monkeypatch):
    trace = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=state"}
    secrets = ("confession", "wrong-key", "agent-smith", "example.org", "vendor")
    headers = {"Authorization": "Bearer wrong-key", "User-Agent": "agent-smith", "Host": "example.org", **trace}
    client.post("/v1/embeddings?q=confession", json={"model": MODEL, "input": "confession"}, headers=headers)
    client.post("/v1/embeddings", json={"model": "confession", "input": "confession"}, headers=headers)
    client.get("/v1/models/confession", headers=headers)
    collector.requests(3)
    for secret in secrets:
        assert secret.encode() not in b"".join(collector.bodies)


def test_the_line_of_a_request_has_the_id_of_its_trace(client, collector, of_request):
    client.get("/v1/models")
    (request,) = collector.requests()
    (fields,) = (record.fields for record in of_request.records if record.name == "embedding_api.access")
    assert fields["trace_id"] == request.trace_id


@pytest.mark.settings(OTEL_SDK_DISABLED="true")
def test_opentelemetry_makes_no_spans_if_its_variable_disables_it(collector, app, of_request):
    assert app.test_client().get("/v1/models").status_code == 200
    app.extensions["embedding_api"].tracing.close()
    assert collector.spans == []
    assert "trace_id" not in of_request.records[-1].fields


class TestAway:
    """A collector that does not run."""

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


@pytest.mark.parametrize("parent", ["x" * 8000, f"01-{TRACE}-{PARENT}-01-" + "x" * 8000, f"ff-{TRACE}-{PARENT}-01"])
def test_a_malformed_traceparent_begins_a_new_trace_without_a_warning(client, collector, caplog, parent):
    assert client.get("/v1/models", headers={"traceparent": parent}).status_code == 200
    (request,) = collector.requests()
    assert request.parent_id == ""
    assert request.trace_id != TRACE
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


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
