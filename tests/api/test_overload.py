"""The view refuses a request if the queue is full, its client left, or its deadline passed."""

import threading
import time

import pytest

from embedding_api.errors import OverloadedError, UnsupportedTokenError
from embedding_api.request import REQUEST, Caller, Request
from tests.api.conftest import MODEL
from tests.api.test_errors import reported


def of(caller):
    """Return the worker's additions to the WSGI environment of a request by this client."""
    return {REQUEST: Request(caller=caller)}


def embed(client, environ=None, headers=None, text="a cat"):
    return client.post(
        "/v1/embeddings", json={"model": MODEL, "input": text}, environ_overrides=environ or {}, headers=headers
    )


def test_a_request_to_a_full_server_is_429_with_retry_after(client, model):
    model.route.backend.error = OverloadedError("the server is overloaded", retry_after_s=7)
    response = embed(client)
    assert response.status_code == 429
    assert response.headers["Retry-After"] == "7"
    error = response.json["error"]
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "server_overloaded", None)


def test_a_token_that_the_model_has_no_row_for_is_400(client, model):
    error = UnsupportedTokenError("input[1] has a token that the model has no row for", param="input[1]")
    model.route.backend.error = error
    assert reported(embed(client)) == (400, "unsupported_token", "input[1]", error.message)


@pytest.fixture
def held(app, model):
    """Keep the core busy with another request's batch."""
    model.route.backend.proceed.clear()
    thread = threading.Thread(target=embed, args=(app.test_client(),), kwargs={"text": "a kitten"})
    thread.start()
    assert model.route.backend.entered.wait(10)
    yield
    model.route.backend.proceed.set()
    thread.join(10)


PYTHON, JAVASCRIPT = "x-stainless-read-timeout", "x-stainless-timeout"
CURE = "send fewer texts at once, or raise"


@pytest.mark.settings(REQUEST_TIMEOUT_S="1")
@pytest.mark.parametrize("headers", [{}, {PYTHON: "600", JAVASCRIPT: "600"}])
def test_a_request_past_its_deadline_is_504_and_the_message_names_the_setting(client, held, headers):
    *got, message = reported(embed(client, headers=headers))
    assert got == [504, "deadline_exceeded", None]
    start = "the request was not answered within the 1 s of REQUEST_TIMEOUT_S"
    assert message == f"{start}; {CURE} REQUEST_TIMEOUT_S"


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({PYTHON: "0.1"}, PYTHON),
        ({JAVASCRIPT: "0.1"}, JAVASCRIPT),
        ({PYTHON: "0.1", JAVASCRIPT: "600"}, PYTHON),
        ({PYTHON: "600.0", JAVASCRIPT: "0.1"}, JAVASCRIPT),
        ({PYTHON: "soon", JAVASCRIPT: "0.1"}, JAVASCRIPT),
        ({PYTHON: "0.1", JAVASCRIPT: "0"}, PYTHON),
    ],
)
def test_a_client_sets_its_deadline_with_openais_headers_and_the_message_names_the_header(client, held, headers, name):
    started = time.monotonic()
    *got, message = reported(embed(client, headers=headers))
    assert time.monotonic() - started < 10
    assert got == [504, "deadline_exceeded", None]
    limit = f"the client's own timeout ({name})"
    assert message == f"the request was not answered within the 0.1 s of {limit}; {CURE} {limit}"


def test_time_spent_waiting_for_a_thread_counts_towards_the_deadline(client, model):
    caller = Caller()
    caller.arrived_s -= 61
    assert reported(embed(client, of(caller)))[:2] == (504, "deadline_exceeded")
    assert model.route.backend.batches == []


def test_a_client_that_left_is_499_and_nothing_is_computed(client, model, held):
    caller = Caller()
    caller.leave()
    assert reported(embed(client, of(caller)))[:2] == (499, "client_gone")
    assert model.route.backend.batches == [[4]]


@pytest.mark.parametrize("value", ["", "soon", "-1", "0", "nan", "1e999"])
def test_a_malformed_timeout_header_is_ignored(client, value):
    assert embed(client, headers={PYTHON: value, JAVASCRIPT: value}).status_code == 200
