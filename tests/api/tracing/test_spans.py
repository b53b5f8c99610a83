"""Spans of requests, as a collector receives them."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from embedding_api.telemetry.metrics import counters
from embedding_api.web import observe
from tests.api.conftest import MODEL
from tests.conftest import samples, until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


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
    "by",
    [
        pytest.param("name", marks=pytest.mark.settings(OTEL_SERVICE_NAME="other")),
        pytest.param(
            "attribute", marks=pytest.mark.settings(OTEL_RESOURCE_ATTRIBUTES="service.name=other,deployment=x")
        ),
    ],
)
def test_opentelemetrys_own_variables_count(by, client, collector):
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
        waiting = samples(counters)
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
    # A batch of both texts, then one batch for each text until one has failed.
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
    monkeypatch.setattr(observe, "MAX_BATCH_SPANS", 2)
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


@pytest.mark.parametrize("parent", ["x" * 8000, f"01-{TRACE}-{PARENT}-01-" + "x" * 8000, f"ff-{TRACE}-{PARENT}-01"])
def test_a_malformed_traceparent_begins_a_new_trace_without_a_warning(client, collector, caplog, parent):
    assert client.get("/v1/models", headers={"traceparent": parent}).status_code == 200
    (request,) = collector.requests()
    assert request.parent_id == ""
    assert request.trace_id != TRACE
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
