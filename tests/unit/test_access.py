"""The id, the access line and the counters of a request, without Flask."""

import logging

import pytest

from embedding_api.telemetry import access, metrics
from tests.conftest import samples

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize("sent", ["abc", "A.b-c_9", "x" * 128])
def test_a_well_formed_request_id_is_kept(sent):
    assert access.request_id(sent) == sent


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, "é", "a/b", "a\n"])
def test_any_other_request_id_is_replaced_by_a_new_one(sent):
    made = access.request_id(sent)
    assert len(made) == 32
    assert made.isalnum()
    assert access.request_id(sent) != made


@pytest.mark.parametrize(
    ("traceparent", "trace_id"),
    [(f"00-{TRACE}-{PARENT}-01", TRACE), (f"cc-{TRACE}-{PARENT}-01-more", TRACE), (f"00-{TRACE}-{PARENT}-01-more", "")],
)
def test_a_trace_id_is_read_from_a_well_formed_traceparent(traceparent, trace_id):
    assert access.trace_id(traceparent) == trace_id


@pytest.fixture
def line(caplog):
    """Return a function that calls `access.record` and returns the fields and the level of its one log line."""

    def line(*arguments, **computed):
        caplog.clear()
        with caplog.at_level(logging.DEBUG):
            access.record(*arguments, **computed)
        (record,) = caplog.records
        assert (record.name, record.getMessage()) == ("embedding_api.access", "request")
        return record.fields, record.levelname

    return line


def requests(route, method, status, model) -> float:
    labels = {"route": route, "method": method, "status": str(status), "model": model}
    return samples(metrics.counters)("embeddings_http_requests_total", labels) or 0


def refused(reason) -> float:
    sample = "embeddings_requests_refused_total"
    return samples(metrics.counters)(sample, {"reason": reason}) or 0


def test_a_request_that_computed_vectors_is_logged_with_their_numbers(line):
    before = requests("/v1/embeddings", "POST", 200, "m")
    assert line("POST", "/v1/embeddings", 200, 0.01234, model="m", texts=2, tokens=8) == (
        {"method": "POST", "route": "/v1/embeddings", "status": 200, "ms": 12.3, "model": "m", "texts": 2, "tokens": 8},
        "INFO",
    )
    assert requests("/v1/embeddings", "POST", 200, "m") == before + 1


def test_a_request_without_a_route_is_logged_without_its_method_and_path(line):
    before = [requests("-", "-", 400, ""), refused("invalid_request")]
    assert line("the-key", "", 400, 0, code="invalid_request", level=logging.DEBUG) == (
        {"method": "-", "route": "-", "status": 400, "ms": 0},
        "DEBUG",
    )
    after = [requests("-", "-", 400, ""), refused("invalid_request")]
    assert after == [number + 1 for number in before]
