"""GET /openapi.json describes what the application accepts and returns.

The client of the API tests checks each response against it; tests/server sends requests made from it to a server.
"""

import re

import pytest

from embedding_api.errors import REPORTED, TransportError
from embedding_api.web.operation import openapi_path


@pytest.fixture
def document(client):
    response = client.get("/openapi.json")
    assert (response.status_code, response.content_type) == (200, "application/json")
    return response.json


def operations(document):
    """Return each path, method and operation."""
    return [(path, method, words) for path, item in document["paths"].items() for method, words in item.items()]


def codes(document, status) -> list[str]:
    """Return the error codes that the document has for a status."""
    schema = document["components"]["responses"][f"Error{status}"]["content"]["application/json"]["schema"]
    return schema["allOf"][1]["properties"]["error"]["properties"]["code"]["enum"]


def request_fields(document):
    return document["components"]["schemas"]["EmbeddingRequest"]["properties"]


def test_every_route_is_described_with_its_methods(app, document):
    routes = {(openapi_path(rule.rule), rule.methods - {"HEAD"} == {"POST"}) for rule in app.url_map.iter_rules()}
    assert routes == {(path, method == "post") for path, method, _ in operations(document)}


def test_a_model_is_described_by_the_names_and_aliases_of_all_models(document):
    names = ["org/fake", "alias", "org/other"]
    assert request_fields(document)["model"]["enum"] == names
    (parameter,) = document["paths"]["/v1/models/{model_id}"]["get"]["parameters"][1:]
    assert parameter["schema"]["enum"] == names


def test_a_prompt_is_described_by_the_names_of_all_prompts(document):
    assert request_fields(document)["prompt_name"]["enum"] == ["query", "law", None]


def test_words_of_other_apis_are_described(document):
    words = ["query", "document", "passage", "search_query", "search_document", None]
    assert request_fields(document)["input_type"]["enum"] == words
    truncate = request_fields(document)["truncate"]
    assert truncate["type"] == ["boolean", "string", "null"]
    assert truncate["enum"] == [True, False, "NONE", "none", "END", "end", None]


def inputs(document):
    return {one["title"]: one for one in request_fields(document)["input"]["anyOf"]}


@pytest.mark.settings(MAX_INPUTS="7")
def test_the_limit_of_texts_is_described(document):
    assert inputs(document)["Texts"]["maxItems"] == 7


def test_token_ids_are_not_described_where_they_are_refused(document):
    assert inputs(document).keys() == {"Text", "Texts"}


@pytest.mark.settings(TOKEN_IDS="model", MAX_INPUTS="7")
def test_token_ids_are_described_where_they_are_accepted(document):
    kinds = inputs(document)
    assert "maxItems" not in kinds["TokenIds"]
    assert kinds["TokenIdsOfTexts"]["maxItems"] == 7


def test_every_error_is_described_with_its_status_and_code(document):
    described = {status for _, _, operation in operations(document) for status in operation["responses"]} | {"401"}
    for error in REPORTED:
        assert str(error.status) in described, error
        if error.status != 401:
            assert set(error.codes) <= set(codes(document, error.status)), error
        if issubclass(error, TransportError):
            assert all(str(error.status) in operation["responses"] for _, _, operation in operations(document))


@pytest.mark.settings(API_KEY_SECRET="secret")
def test_exactly_the_operations_that_need_a_key_are_described_so(client, document):
    for path, method, operation in operations(document):
        needs_key = client.open(re.sub("{.*}", "x", path), method=method).status_code == 401
        assert ("security" in operation, "401" in operation["responses"]) == (needs_key, needs_key), path
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert codes(document, 401) == ["invalid_api_key"]


@pytest.mark.settings(API_KEY_SECRET="secret", METRICS_PUBLIC="true")
def test_public_metrics_are_described_without_a_key(document):
    assert "security" not in document["paths"]["/metrics"]["get"]


def test_without_keys_no_operation_is_described_with_one(document):
    assert "securitySchemes" not in document["components"]
    assert not any("401" in operation["responses"] for _, _, operation in operations(document))


def test_operations_have_ids_of_their_own(document):
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
