"""GET /metrics of one process. tests/server tests it across workers."""

import http

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.conftest import MODEL


@pytest.fixture
def counted(client):
    """Return a function that gives a counter's growth since the test began, because all tests share the counters."""

    def families():
        return text_string_to_metric_families(client.get("/metrics").text)

    def value(sample, **labels):
        samples = [one for family in families() for one in family.samples if one.name == f"embeddings_{sample}"]
        return sum(one.value for one in samples if labels.items() <= one.labels.items())

    before = {(one.name, frozenset(one.labels.items())): one.value for family in families() for one in family.samples}

    def counted(sample, **labels):
        was = sum(
            number
            for (name, labelled), number in before.items()
            if name == f"embeddings_{sample}" and labels.items() <= set(labelled)
        )
        return value(sample, **labels) - was

    return counted


def test_requests_are_counted_by_route_method_status_and_model(client, post, counted):
    post(input="a cat")
    post(input=["a cat", "tax law"], path="/embeddings")
    post(input="")
    client.get("/models")
    client.get("/models/org/fake")
    client.get("/health")
    client.get("/nowhere/secret")
    for labels, n in [
        ({"route": "/v1/embeddings", "method": "POST", "status": "200", "model": MODEL}, 1),
        ({"route": "/embeddings", "method": "POST", "status": "200", "model": MODEL}, 1),
        ({"route": "/v1/embeddings", "method": "POST", "status": "422", "model": ""}, 1),
        ({"route": "/models", "method": "GET", "status": "200", "model": ""}, 1),
        ({"route": "/models/<path:model_id>", "method": "GET", "status": "200", "model": ""}, 1),
        ({"route": "/health", "method": "GET", "status": "200", "model": ""}, 1),
        ({"route": "-", "method": "GET", "status": "404", "model": ""}, 1),
    ]:
        assert counted("http_requests_total", **labels) == n
    assert counted("requests_refused_total", reason="empty_input") == 1
    assert counted("requests_refused_total", reason="not_found") == 1


def test_an_alias_is_counted_as_its_model(post, counted):
    post(model="alias", input="a cat")
    assert counted("texts_total", model=MODEL) == 1
    assert counted("texts_total", model="alias") == 0


def test_texts_tokens_and_stages_are_counted(post, counted):
    texts = ["a cat", "a " * 40, "tax"]
    answer = post(input=texts).json
    assert counted("texts_total", model=MODEL) == 3
    assert counted("tokens_total", model=MODEL) == answer["usage"]["prompt_tokens"]
    assert counted("texts_truncated_total", model=MODEL) == 1
    for stage in ("tokenize", "queue", "inference", "total"):
        assert counted("request_duration_seconds_count", model=MODEL, stage=stage) == 1


def test_equal_texts_are_computed_once_and_counted(post, counted, model):
    post(input=["a cat", "a cat", "a kitten", "a cat"])
    assert counted("texts_deduplicated_total", model=MODEL) == 2
    assert counted("batch_texts_sum", model=MODEL) == 2
    assert counted("texts_total", model=MODEL) == 4


def test_batches_and_their_padding_are_counted(post, counted, model):
    post(input=["a cat", "a cat a kitten", "a", "tax law"])
    batches = model.route.backend.batches
    assert counted("batch_texts_count", model=MODEL) == len(batches)
    assert counted("batch_duration_seconds_count", model=MODEL) == len(batches)
    n_tokens, n_computed = sum(map(sum, batches)), sum(len(batch) * max(batch) for batch in batches)
    assert counted("computed_tokens_total", model=MODEL) == n_computed
    assert counted("padding_tokens_total", model=MODEL) == n_computed - n_tokens


def test_vectors_that_are_not_finite_are_counted(post, counted, model):
    model.route.backend.value = float("nan")
    assert post(input=["a cat", "tax"]).status_code == http.HTTPStatus.INTERNAL_SERVER_ERROR
    assert counted("bad_vectors_total", model=MODEL) == 2
    assert counted("texts_total", model=MODEL) == 0


def test_batches_that_fail_are_counted(post, counted, model):
    model.route.backend.error = RuntimeError("on purpose")
    assert post(input="a cat").status_code == http.HTTPStatus.INTERNAL_SERVER_ERROR
    assert counted("batch_failures_total", model=MODEL) >= 1


def test_the_gauges_are_zero_after_the_last_response(post, client):
    post(input=["a cat", "tax"])
    for line in ("queue_texts 0.0", "queue_tokens 0.0", "batches_in_progress 0.0"):
        assert f"embeddings_{line}\n" in client.get("/metrics").text


def test_metrics_have_the_format_that_the_client_accepts(client):
    assert client.get("/metrics").content_type.startswith("text/plain; version=")
    accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    answer = client.get("/metrics", headers={"Accept": accept})
    assert answer.content_type.startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


@pytest.mark.parametrize("version", ["abc", "1.", "=1.0.0", "1.x.0", "²", ""])
@pytest.mark.parametrize("kind", ["text/plain", "application/openmetrics-text"])
def test_a_malformed_version_in_accept_is_ignored(client, kind, version):
    answer = client.get("/metrics", headers={"Accept": f"{kind}; version={version}"})
    assert answer.status_code == http.HTTPStatus.OK
    assert "embeddings_texts_total" in answer.text


@pytest.mark.settings(API_KEY_SECRET="secret")
def test_metrics_need_a_key_as_embeddings_do(client):
    assert client.get("/metrics").status_code == http.HTTPStatus.UNAUTHORIZED
    assert client.get("/metrics", headers={"Authorization": "Bearer secret"}).status_code == http.HTTPStatus.OK


@pytest.mark.settings(API_KEY_SECRET="secret", METRICS_PUBLIC="true")
def test_metrics_may_be_public_while_embeddings_are_not(client, post):
    assert client.get("/metrics").status_code == http.HTTPStatus.OK
    assert post(input="a cat").status_code == http.HTTPStatus.UNAUTHORIZED
