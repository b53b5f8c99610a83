"""Health, models, keys, request ids and the access line."""

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from embedding_api import __version__
from embedding_api.app import create_app
from embedding_api.request import REQUEST, Caller, Request
from embedding_api.service import service_of
from embedding_api.settings import load_settings
from tests.fakes import fake_engine

KEYS = pytest.mark.settings(API_KEY_SECRET="first, schlüssel, voilà")


def test_the_root_names_the_service_and_its_models(client):
    assert client.get("/").json == {
        "service": "Memementor Embedding Service",
        "status": "healthy",
        "version": __version__,
        "available_models": ["org/fake", "org/other"],
    }
    assert client.head("/").status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/models/"])
def test_models_are_listed_in_openais_shape_and_ours(client, path):
    listed = client.get(path).json
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["org/fake", "org/other"]
    assert listed["data"][0] == {
        "id": "org/fake",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "org",
        "dimensions": 8,
        "max_input_tokens": 16,
        "prompts": {"query": "query: ", "law": "law "},
        "backend": "fake",
        "precision": "float32",
        "proof": {"measure": "largest_difference", "value": 1e-7, "bound": 2e-6},
    }


@pytest.mark.parametrize("name", ["org/fake", "alias"])
@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_a_model_is_shown_by_name_and_by_alias(client, path, name):
    assert client.get(f"{path}/{name}").json["id"] == "org/fake"


def test_the_service_is_live_and_ready(client):
    assert client.get("/health/live").json == {"status": "live"}
    assert client.get("/health/ready").json == {"status": "ready"}
    assert client.get("/health").json == {"status": "ready"}
    assert client.head("/health").status_code == 200


def test_the_service_is_not_ready_while_a_batch_is_stuck(app, client, model):
    """Given a batch that does not end, when its timeout passes, then readiness fails and liveness does not."""
    engine = service_of(app).engine
    model.route.backend.proceed.clear()
    with ThreadPoolExecutor(1) as requests:
        request = requests.submit(engine.embed, "alias", ["a"])
        try:
            assert model.route.backend.entered.wait(10)
            assert client.get("/health/ready").status_code == 200
            engine.runner.inference_timeout_s = 0
            for path in ("/health/ready", "/health"):
                response = client.get(path)
                assert response.status_code == 503
                assert response.json["error"]["code"] == "not_ready"
                assert int(response.headers["Retry-After"]) > 0
            assert client.get("/health/live").status_code == 200
            assert client.get("/").json["status"] == "unhealthy"
        finally:
            model.route.backend.proceed.set()
        request.result(10)
    assert client.get("/health/ready").status_code == 200


@KEYS
@pytest.mark.parametrize(
    "header",
    [
        "Bearer first",
        "bearer first",
        "BEARER  first ",
        "Bearer schlüssel".encode().decode("latin-1"),
        "Bearer voilà".encode().decode("latin-1"),
    ],
)
def test_each_key_is_accepted_in_any_case_of_the_scheme(client, header):
    assert client.get("/v1/models", headers={"Authorization": header}).status_code == 200


@KEYS
@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic first", "first", "Bearer fir", "Bearer first,", "Bearer \xff"]
)
def test_any_other_key_is_401(client, header):
    response = client.get("/v1/models", headers={} if header is None else {"Authorization": header})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.json["error"]["code"] == "invalid_api_key"
    assert "first" not in response.json["error"]["message"]


@pytest.mark.settings(API_KEY_SECRET="k", REQUIRE_AUTH="false")
def test_keys_need_not_be_required(client):
    assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize("given", ["abc", "A.b-c_9", "x" * 128])
def test_a_well_formed_request_id_is_kept(client, given):
    assert client.get("/nope", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "é", "a/b"])
def test_any_other_request_id_is_replaced(client, given):
    made = client.get("/", headers={"X-Request-ID": given}).headers["X-Request-ID"]
    assert made != given
    assert len(made) == 32


@pytest.mark.settings(API_KEY_SECRET="the-key")
def test_the_access_line_has_numbers_and_no_text_or_key(client, of_request):
    client.post(
        "/v1/embeddings?key=the-key",
        json={"model": "alias", "input": ["a confession", "a cat"]},
        headers={"Authorization": "Bearer the-key", "X-Request-ID": "id-1"},
    )
    client.get("/a%20confession%0aforged", headers={"Authorization": "Bearer wrong-key"})
    first, second = (record.fields for record in of_request.records if record.name == "embedding_api.access")
    assert first.pop("ms") >= 0
    assert first == {
        "request_id": "id-1",
        "method": "POST",
        "route": "/v1/embeddings",
        "status": 200,
        "model": "org/fake",
        "texts": 2,
        "tokens": 8,
    }
    assert (second["route"], second["status"]) == ("-", 404)
    everything = " ".join(str(vars(record)) for record in of_request.records)
    for secret in ("confession", "the-key", "wrong-key", "forged"):
        assert secret not in everything


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/", "/health", "/health/live", "/health/ready"])
def test_a_health_check_that_succeeds_is_logged_at_debug(client, of_request, method, path):
    assert client.open(path, method=method).status_code == 200
    (line,) = of_request.records
    assert (line.levelname, line.fields["route"], line.fields["status"]) == ("DEBUG", path, 200)


def test_a_health_check_that_fails_and_any_other_request_are_logged_at_info(app, client, of_request, monkeypatch):
    with monkeypatch.context() as patches:
        patches.setattr(service_of(app).engine, "problem", lambda: "it hangs")
        for path in ("/health", "/health/ready"):
            assert client.get(path).status_code == 503
    assert client.post("/health").status_code == 405
    assert client.get("/health/nope").status_code == 404
    assert client.get("/models").status_code == 200
    assert {record.levelname for record in of_request.records} == {"INFO"}
    assert [record.fields["status"] for record in of_request.records] == [503, 503, 405, 404, 200]


TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    "given", [f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00", f"cc-{TRACE}-{PARENT}-01-what-will-be"]
)
def test_the_access_line_has_the_client_s_trace(client, of_request, given):
    client.get("/", headers={"traceparent": given})
    assert of_request.records[-1].fields["trace_id"] == TRACE


@pytest.mark.parametrize(
    "given",
    [
        "",
        TRACE,
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-01-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
    ],
)
def test_a_malformed_trace_is_ignored(client, of_request, given):
    client.get("/", headers={"traceparent": given})
    assert "trace_id" not in of_request.records[-1].fields


def test_every_line_of_a_request_and_no_other_has_its_ids(client, model, of_request):
    model.route.backend.error = RuntimeError("no")
    body = {"model": "org/fake", "input": "a"}
    headers = {"X-Request-ID": "id-1", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    assert client.post("/v1/embeddings", json=body, headers=headers).status_code == 500
    logging.getLogger("embedding_api").info("of none")
    ids = {record.getMessage(): getattr(record, "fields", {}) for record in of_request.records}
    for line in ("request failed", "request"):
        assert (ids[line]["request_id"], ids[line]["trace_id"]) == ("id-1", TRACE)
    # These lines come from the inference thread, which computes for all requests, and from the time after the request.
    assert ids["a batch of 1 texts failed: RuntimeError"] == ids["of none"] == {}


def test_the_line_about_a_client_that_left_has_the_id_of_its_request(app, model, of_request):
    model.route.backend.proceed.clear()
    caller = Caller()
    ask = partial(
        app.test_client().post,
        "/v1/embeddings",
        json={"model": "org/fake", "input": ["a", "cat"]},
        headers={"X-Request-ID": "id-1"},
        environ_overrides={REQUEST: Request(caller=caller)},
    )
    with ThreadPoolExecutor(1) as clients:
        answer = clients.submit(ask)
        assert model.route.backend.entered.wait(30)
        caller.leave()
        assert answer.result().status_code == 499
        model.route.backend.proceed.set()
    (dropped,) = (record for record in of_request.records if "dropped" in record.getMessage())
    assert dropped.fields["request_id"] == "id-1"


@pytest.mark.parametrize("is_key_needed", [True, False])
def test_the_application_logs_how_many_keys_it_has_and_nothing_about_addresses(monkeypatch, caplog, is_key_needed):
    if is_key_needed:
        monkeypatch.setenv("API_KEY_SECRET", "one,two")
    with caplog.at_level(logging.INFO):
        create_app(load_settings(), fake_engine())
    assert [record.fields for record in caplog.records if "a key is needed" in record.message] == [
        {"keys": 2}
    ] * is_key_needed
    for word in ("one", "only this machine", "anyone"):
        assert word not in caplog.text
