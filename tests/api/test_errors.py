"""Every error has the same form of body, names the field and the cure, and repeats no text of the client."""

import gzip
import inspect
import json
import re
from pathlib import Path

import pytest

from embedding_api import errors
from embedding_api.errors import REPORTED, ServiceError, StartError, type_of
from tests.api.conftest import MODEL

SECRET_TEXT = "the patient's name"
ROOT = Path(__file__).parents[2]
NGINX, MANUAL = ROOT / "deploy" / "nginx" / "nginx.conf", ROOT / "docs" / "api.md"


def reported(response):
    """Return status, code, param and message of an error response, after a check of its shape."""
    assert response.content_type == "application/json"
    assert set(response.json) == {"error"}
    error = response.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if response.status_code >= 500 else "invalid_request_error")
    assert response.headers["X-Request-ID"]
    assert SECRET_TEXT not in error["message"]
    return response.status_code, error["code"], error["param"], error["message"]


@pytest.mark.parametrize(
    ("fields", "code", "param", "fragment"),
    [
        ({}, "missing_field", "input", "required"),
        ({"input": None}, "missing_field", "input", "required"),
        ({"input": "a", "model": None}, "missing_field", "model", "required"),
        ({"input": 5}, "invalid_type", "input", "not a number"),
        ({"input": {"text": SECRET_TEXT}}, "invalid_type", "input", "not an object"),
        ({"input": True}, "invalid_type", "input", "not a boolean"),
        ({"input": []}, "empty_input", "input", "at least one"),
        ({"input": ""}, "empty_input", "input", "must not be empty"),
        ({"input": ["a", ""]}, "empty_input", "input[1]", "must not be empty"),
        ({"input": ["a", None]}, "invalid_type", "input[1]", "not null"),
        ({"input": [SECRET_TEXT, 7]}, "invalid_type", "input[1]", "not a number"),
        ({"input": ["a", [1]]}, "invalid_type", "input[1]", "not an array"),
        ({"input": [["a"]]}, "invalid_type", "input[0]", "must be a string, not an array"),
        ({"input": [True]}, "invalid_type", "input[0]", "not a boolean"),
        ({"input": [1.5]}, "invalid_type", "input[0]", "not a number"),
        ({"input": [[]]}, "invalid_type", "input[0]", "must be a string, not an array"),
        ({"input": ["a"] * 2049}, "too_many_inputs", "input", "2048"),
        ({"input": "a", "model": 5}, "invalid_type", "model", "not a number"),
        ({"input": "a", "encoding_format": "hex"}, "invalid_value", "encoding_format", "'hex'"),
        ({"input": "a", "encoding_format": 1}, "invalid_type", "encoding_format", "not a number"),
        ({"input": "a", "dimensions": 0}, "invalid_value", "dimensions", "1 or more"),
        ({"input": "a", "dimensions": -3}, "invalid_value", "dimensions", "-3"),
        ({"input": "a", "dimensions": 1.5}, "invalid_type", "dimensions", "1.5"),
        ({"input": "a", "dimensions": "4"}, "invalid_type", "dimensions", "not a string"),
        ({"input": "a", "dimensions": True}, "invalid_type", "dimensions", "not a boolean"),
        ({"input": "a", "truncate": "yes"}, "invalid_type", "truncate", "not a string"),
        ({"input": "a", "truncate": 1}, "invalid_type", "truncate", "not a number"),
        ({"input": "a", "user": 1}, "invalid_type", "user", "not a number"),
        ({"input": "a", "truncate": "End"}, "invalid_type", "truncate", "not a string"),
        ({"input": "a", "truncate": "START"}, "invalid_value", "truncate", "must be END or NONE, not START"),
        ({"input": "a", "truncate": "start"}, "invalid_value", "truncate", "must be END or NONE, not START"),
        ({"input": "a", "input_type": "topic"}, "invalid_value", "input_type", "query or document, not 'topic'"),
        ({"input": "a", "input_type": "PASSAGE"}, "invalid_value", "input_type", "query or document, not 'PASSAGE'"),
        ({"input": "a", "input_type": ["passage"]}, "invalid_type", "input_type", "not an array"),
        ({"input": "a", "prompt_name": ["query"]}, "invalid_type", "prompt_name", "not an array"),
    ],
)
def test_a_field_that_the_schema_refuses_is_422_and_named(post, fields, code, param, fragment):
    status, *got, message = reported(post(fields))
    assert (status, *got) == (422, code, param)
    assert message.startswith(param)
    assert fragment in message


@pytest.mark.parametrize(
    ("fields", "code", "param", "fragment"),
    [
        ({"model": "nope"}, "model_not_found", "model", "available: org/fake, org/other"),
        ({"model": ""}, "model_not_found", "model", "available"),
        ({"model": "../../etc/passwd"}, "model_not_found", "model", "available"),
        ({"dimensions": 9}, "unsupported_dimensions", "dimensions", "send at most 8, or leave"),
        ({"dimensions": 1e308}, "unsupported_dimensions", "dimensions", f"={str(int(1e308))[:100]} is more"),
        ({"prompt_name": "topic"}, "unknown_prompt", "prompt_name", "which has 'query', 'law'"),
        ({"prompt_name": ""}, "unknown_prompt", "prompt_name", "which has 'query', 'law'"),
        ({"prompt_name": "query", "model": "org/other"}, "unknown_prompt", "prompt_name", "which has none; send one"),
    ],
)
def test_a_request_that_no_model_can_serve_is_400(post, fields, code, param, fragment):
    status, *got, message = reported(post(fields, input="a"))
    assert (status, *got) == (400, code, param)
    assert fragment in message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nope",
        b'{"model": NaN}',
        b'{"input": "\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"dimensions": NaN, "input": "\\ud800"}',
        b'"\\ud800',
        b"[" * 900 + b'"\\ud800"',
        b"\xef\xbb\xbf{}",
    ],
)
def test_a_body_that_is_not_json_is_400(post, body):
    status, code, param, message = reported(post(body))
    assert (status, code, param) == (400, "invalid_json", None)
    assert "JSON" in message


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (rb'{"input": "\ud800", "dimensions": 4,}', "trailing comma is not allowed: line 1 column 36"),
        (rb'{"input": "\udc00", "dimensions": NaN}', "unexpected character, expected a JSON value: line 1 column 35"),
        (rb'{"input": "\ud800", "dimensions": 1e999}', "number is infinity when parsed as double: line 1 column 35"),
        ('{"input": "ü"}'.encode("latin-1"), "not UTF-8: byte 11 is 0xfc (invalid start byte)"),
        ('{"input": "u"}'.encode("utf-16-le"), "line 1 column 2"),
        ('{"input": "u"}'.encode("utf-16"), "not UTF-8: byte 0 is 0xff"),
        (gzip.compress(b"{}", mtime=0), "not UTF-8: byte 1 is 0x8b (invalid start byte); send JSON in UTF-8, uncomp"),
    ],
)
def test_the_fault_of_a_body_is_named_with_its_place(post, body, fault):
    assert fault in reported(post(body))[3]


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"Upgrade": "websocket", "Connection": "Upgrade"}, "Upgrade"),
        ({"Host": "a" * 300}, "Host"),
        ({"Host": "a..b"}, "Host"),
    ],
)
def test_a_header_that_flask_refuses_is_named(post, headers, name):
    status, code, _, message = reported(post(input="a", headers=headers))
    assert (status, code) == (400, "invalid_request")
    assert message.startswith(f"the header {name} ")


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"[]", "an array"), (b'"a"', "a string"), (b"1", "a number"), (b"null", "null"), (b"true", "a boolean")],
)
def test_a_body_that_is_not_an_object_is_400_and_its_type_is_named(post, body, kind):
    status, code, _, message = reported(post(body))
    assert (status, code) == (400, "invalid_json")
    assert kind in message


def test_a_number_of_5000_digits_breaks_nothing(post):
    body = b'{"model": "org/fake", "input": "a", "dimensions": ' + b"9" * 5000 + b"}"
    assert reported(post(body))[:2] == (400, "invalid_json")


@pytest.mark.parametrize("encoding", ["gzip", "br", "x" * 100])
def test_a_compressed_body_is_415(post, encoding):
    status, code, _, message = reported(post(b"\x1f\x8b", headers={"Content-Encoding": encoding}))
    assert (status, code) == (415, "unsupported_encoding")
    assert encoding[:40] in message


def test_the_identity_encoding_is_accepted(post):
    assert post(input="a", headers={"Content-Encoding": "identity"}).status_code == 200


def test_an_incomplete_body_is_400(client):
    response = client.post("/v1/embeddings", data=b"{", environ_overrides={"CONTENT_LENGTH": "10"})
    assert reported(response)[:2] == (400, "invalid_body")


@pytest.mark.settings(MAX_BODY_BYTES="2000")
def test_a_body_over_the_limit_is_413(post):
    assert reported(post(input="a" * 3000))[:2] == (413, "body_too_large")
    assert post(input="a" * 1000).status_code == 200


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1//embeddings", "/v1/embeddings/x", "/static/x"])
def test_an_unknown_path_is_404(client, path):
    assert reported(client.get(path))[:2] == (404, "not_found")


def test_a_wrong_method_is_405_with_allow(client):
    response = client.get("/v1/embeddings")
    assert reported(response)[:2] == (405, "method_not_allowed")
    assert response.headers["Allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_the_path_of_an_unknown_model_is_404(client, path):
    assert reported(client.get(f"{path}/org/nope"))[:2] == (404, "model_not_found")


def test_a_bug_is_500_and_only_the_log_has_its_cause(post, model, caplog):
    model.route.backend.error = RuntimeError("inner details")
    status, code, _, message = reported(post(input=SECRET_TEXT))
    assert (status, code) == (500, "internal_error")
    assert "inner details" not in message
    assert "inner details" in caplog.text
    assert SECRET_TEXT not in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_vector_that_is_not_finite_is_500_and_never_null(post, model, caplog, value):
    model.route.backend.value = value
    assert reported(post(input="a"))[:2] == (500, "internal_error")
    assert "NaN or infinity" in caplog.text


def test_a_request_after_a_fault_is_answered(post, model):
    model.route.backend.error = RuntimeError("once")
    assert post(input="a").status_code == 500
    model.route.backend.error = None
    assert post(input="a").status_code == 200


def test_a_debugger_gets_the_exception(app, model):
    app.debug = True
    model.route.backend.error = RuntimeError("for the debugger")
    with pytest.raises(RuntimeError, match="for the debugger"):
        app.test_client().post("/v1/embeddings", json={"model": MODEL, "input": "a"})


def subclasses(cls) -> set[type]:
    """Return all subclasses of a class, at any depth."""
    return {found for sub in cls.__subclasses__() for found in {sub, *subclasses(sub)}}


# Base classes. Only their subclasses are raised.
BRANCHES = {errors.RequestError, errors.TransportError}
RAISED_BY_REQUESTS = subclasses(ServiceError) - subclasses(StartError) - {StartError} - BRANCHES


def test_every_error_that_a_request_can_meet_is_reported_and_no_other():
    assert {error for error in RAISED_BY_REQUESTS if error is not errors.NonFiniteVectorError} == set(REPORTED)
    assert errors.NonFiniteVectorError.status == 500


ARGUMENTS = {errors.MethodNotAllowedError: {"allowed": "GET, HEAD"}, errors.OverloadedError: {"retry_after_s": 7}}


@pytest.mark.parametrize("error", RAISED_BY_REQUESTS, ids=lambda error: error.__name__)
def test_every_error_is_reported_as_its_class_says(error):
    failed = error(SECRET_TEXT, **ARGUMENTS.get(error, {}))
    assert (failed.status, failed.code) == (error.status, error.codes[0])
    assert failed.headers.keys() == error.headers.keys()
    assert all(failed.headers.values())
    body = failed.body["error"]
    assert (body["type"], body["param"], body["code"]) == (type_of(error.status), None, failed.code)
    assert (body["message"] == SECRET_TEXT) == (error.status != 500)


@pytest.mark.parametrize(
    ("error", "status", "header", "value"),
    [
        (errors.InvalidKeyError("no key"), 401, "WWW-Authenticate", "Bearer"),
        (errors.MethodNotAllowedError("not PUT", allowed="GET, HEAD"), 405, "Allow", "GET, HEAD"),
        (errors.OverloadedError("full", retry_after_s=7), 429, "Retry-After", "7"),
        (errors.NotReadyError("draining"), 503, "Retry-After", "5"),
    ],
)
def test_an_error_has_its_header(error, status, header, value):
    assert (error.status, error.headers) == (status, {header: value})


@pytest.mark.parametrize(
    ("error", "type_"),
    [
        (errors.InvalidJsonError, "invalid_request_error"),
        (errors.ClientGoneError, "invalid_request_error"),
        (errors.OverloadedError, "rate_limit_error"),
        (errors.EngineError, "server_error"),
        (errors.NotReadyError, "server_error"),
    ],
)
def test_the_type_of_an_error_follows_from_its_status(error, type_):
    assert type_of(error.status) == type_


@pytest.mark.parametrize("kind", [errors.SettingsError, errors.RequestError])
def test_an_error_that_no_request_should_meet_is_an_internal_error_without_its_message(kind):
    failed = kind(SECRET_TEXT)
    assert (failed.status, failed.code) == (500, "internal_error")
    assert SECRET_TEXT not in failed.body["error"]["message"]


def test_nginx_refuses_with_the_codes_and_types_of_the_errors():
    refusals = NGINX.read_text().partition("map $status $embeddings_refusal {")[2].partition("\n    }")[0]
    rows = {str(error.status): (type_of(error.status), error.codes[0]) for error in REPORTED}
    rows |= {"400": ("invalid_request_error", "invalid_request"), "502": rows["503"], "default": rows["500"]}
    lines = re.findall(r"^ +(\w+) '(.*)';$", refusals.replace("\\'", "'"), re.MULTILINE)
    assert len(lines) > 5
    for status, body in lines:
        error = json.loads(body)["error"]
        assert (error["type"], error["code"]) == rows[status]
        assert error["param"] is None
        assert error["message"]


def test_the_manual_has_every_status_and_code_of_the_errors():
    rows = re.findall(r"^\| ([\d, ]+) \| ([`a-z_, ]+) \| .+ \|$", MANUAL.read_text(), re.MULTILINE)
    documented = [(set(statuses.split(", ")), set(re.findall(r"\w+", codes))) for statuses, codes in rows]
    for error in REPORTED:
        for code in error.codes:
            assert any(str(error.status) in statuses and code in codes for statuses, codes in documented), code
    assert set().union(*(codes for _, codes in documented)) == {code for error in REPORTED for code in error.codes}
    assert set().union(*(statuses for statuses, _ in documented)) == {str(error.status) for error in REPORTED}


def test_the_drawing_names_every_error():
    classes = [name for name, item in inspect.getmembers(errors, inspect.isclass) if issubclass(item, Exception)]
    drawn = re.findall(r"\w+", errors.__doc__)
    assert [name for name in classes if name not in drawn] == []


def test_no_error_repeats_a_text(post):
    for fields in ({"input": [SECRET_TEXT], "dimensions": 99}, {"input": SECRET_TEXT, "model": "nope"}):
        reported(post(fields))
    long = SECRET_TEXT * 20
    assert SECRET_TEXT not in json.dumps(post(input=long, truncate=False).json)
