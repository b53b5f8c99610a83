"""POST /v1/embeddings: requests of real clients, and their responses."""

import base64
import gc
import json

import numpy as np
import pytest

from tests.api.conftest import MODEL
from tests.fakes import DIM, WINDOW, vector

CAT = vector([1, 3, 4, 2])  # [CLS] a cat [SEP]
QUERY_CAT = vector([1, 8, 3, 4, 2])  # [CLS] query: a cat [SEP]
LONG = " ".join(["cat"] * 50)


def vectors(response):
    assert response.status_code == 200, response.json
    return [np.array(item["embedding"], dtype=np.float32) for item in response.json["data"]]


def test_a_string_gives_one_vector_in_openais_shape(post):
    response = post(input="a cat")
    assert response.json == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": pytest.approx(CAT.tolist())}],
        "model": MODEL,
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    assert response.content_type == "application/json"


def test_a_list_gives_its_vectors_in_its_order_whatever_the_batches(post, model):
    texts = [" ".join(["cat"] * n) for n in (3, 14, 1, 9, 14, 2, 5)]
    response = post(input=texts)
    for text, got in zip(texts, vectors(response), strict=True):
        np.testing.assert_array_equal(got, vector([1, *[4] * len(text.split()), 2]))
    assert [item["index"] for item in response.json["data"]] == list(range(7))
    assert len(model.route.backend.batches) > 1


def test_usage_counts_the_tokens_read_duplicates_too(post):
    assert post(input=["a cat", "a cat", "law"]).json["usage"] == {"prompt_tokens": 11, "total_tokens": 11}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/v1/embeddings/"])
def test_both_paths_work_with_and_without_a_slash(post, path):
    assert post(input="law", path=path).status_code == 200


def test_the_response_names_the_model_as_the_request_did(post):
    assert post(input="law", model="alias").json["model"] == "alias"


def test_base64_is_little_endian_float32_of_the_same_numbers(post):
    encoded = post(input="a cat", encoding_format="base64").json["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(encoded), "<f4"), CAT)


@pytest.mark.parametrize("dimensions", [1, 3, 4.0, DIM])
def test_dimensions_keeps_leading_components_at_unit_length(post, dimensions):
    (got,) = vectors(post(input="a cat", dimensions=dimensions))
    wanted = CAT[: int(dimensions)]
    np.testing.assert_allclose(got, wanted / np.linalg.norm(wanted), rtol=1e-6)


@pytest.mark.parametrize("asked", [{"input_type": "query"}, {"input_type": "search_query"}, {"prompt_name": "query"}])
def test_the_models_prompt_for_queries_stands_before_each_text_and_is_counted(post, asked):
    response = post(input=["a cat", "a cat"], **asked)
    np.testing.assert_array_equal(vectors(response), [QUERY_CAT] * 2)
    assert response.json["usage"]["total_tokens"] == 10


def test_a_named_prompt_replaces_the_prompt_of_the_input_type(post):
    response = post(input="a cat", input_type="query", prompt_name="law")
    np.testing.assert_array_equal(vectors(response), [vector([1, 7, 3, 4, 2])])


@pytest.mark.parametrize("word", ["document", "passage", "search_document"])
def test_words_of_other_apis_for_documents_select_the_route_for_documents(post, model, word):
    """Given a route for documents, when a request has another API's word for them, then it takes this route."""
    model.routes["document"] = model.routes["query"]
    np.testing.assert_array_equal(vectors(post(input="a cat", input_type=word)), [QUERY_CAT])


@pytest.mark.parametrize("asked", [{"input_type": "document"}, {"input_type": "query", "model": "org/other"}])
def test_an_input_type_without_a_prompt_or_route_changes_nothing(post, asked):
    np.testing.assert_array_equal(vectors(post(input="a cat", **asked)), [CAT])


def test_a_text_that_exceeds_the_window_with_its_prompt_is_cut_and_marked(post):
    text = " ".join(["cat"] * (WINDOW - 2))
    assert "truncated" not in post(input=text).json["data"][0]
    response = post(input=text, input_type="query")
    np.testing.assert_array_equal(vectors(response), [vector([1, 8, *[4] * (WINDOW - 3), 2])])
    assert response.json["data"][0]["truncated"] is True


@pytest.mark.parametrize("field", ["encoding_format", "dimensions", "user", "truncate", "input_type", "prompt_name"])
def test_null_in_an_optional_field_means_absent(post, field):
    np.testing.assert_array_equal(vectors(post({"input": "a cat", field: None}))[0], CAT)


def test_unknown_fields_and_a_user_are_ignored(post):
    body = {"input": "a cat", "user": "u", "output_dimension": 3, "output_dtype": None, "x": [1]}
    np.testing.assert_array_equal(vectors(post(body))[0], CAT)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_json_is_accepted_with_any_content_type(client, content_type):
    body = json.dumps({"model": MODEL, "input": "law"})
    assert client.post("/v1/embeddings", data=body, content_type=content_type).status_code == 200


def test_truncation_is_reported_on_the_item_in_a_header_and_in_usage(post):
    response = post(input=["law", LONG, LONG])
    assert [item.get("truncated") for item in response.json["data"]] == [None, True, True]
    assert response.headers["X-Truncated-Inputs"] == "2"
    assert response.json["usage"]["prompt_tokens"] == 3 + 2 * WINDOW
    np.testing.assert_array_equal(vectors(response)[1], vector([1, *[4] * (WINDOW - 2), 2]))


def test_the_header_for_truncation_is_absent_without_truncation(post):
    assert "X-Truncated-Inputs" not in post(input="law").headers


@pytest.mark.parametrize("declined", [False, "NONE", "none"])
def test_a_long_text_is_refused_where_truncation_is_declined(post, declined):
    response = post(input=["law", LONG], truncate=declined)
    assert response.status_code == 400
    error = response.json["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input[1]")
    assert f"{WINDOW} tokens" in error["message"]
    assert "at least 52 tokens" in error["message"]


def test_a_text_that_is_not_read_to_its_end_is_refused_with_the_window_where_truncation_is_declined(post):
    error = post(input=["law", " " * 300_000 + "cat"], truncate=False).json["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input[1]")
    assert "has 2 tokens in its first 250000 characters, and the rest is unread" in error["message"]
    assert f"is {WINDOW} tokens" in error["message"]


@pytest.mark.settings(TRUNCATE="false")
def test_a_request_can_allow_truncation_that_the_server_declines(post):
    assert post(input=LONG).status_code == 400
    for asked in (True, "END", "end"):
        assert post(input=LONG, truncate=asked).headers["X-Truncated-Inputs"] == "1"


def test_server_timing_has_the_time_of_each_stage(post):
    parts = dict(part.split(";dur=") for part in post(input="law").headers["Server-Timing"].split(", "))
    assert list(parts) == ["tokenize", "queue", "inference", "total"]
    times = {name: float(ms) for name, ms in parts.items()}
    assert times["total"] >= max(times["tokenize"], times["queue"], times["inference"]) >= 0


@pytest.mark.parametrize(
    "body", [rb'{"model":"org/fake","input":"cat \ud800"}', rb'{"model":"org/fake","input":"\udc00"}']
)
def test_half_a_surrogate_pair_is_replaced(client, body):
    assert client.post("/v1/embeddings", data=body).status_code == 200


def test_a_whole_surrogate_pair_beside_half_of_one_survives(post, client):
    mixed = client.post("/v1/embeddings", data=rb'{"model":"\ud83d\ude00\ud800","input":"law"}')
    assert "'\U0001f600\ufffd'" in mixed.json["error"]["message"]


@pytest.mark.parametrize("text", ["cat \x00\x01\x7f", "\u200b", "x" * 200_000, " " * 200_000 + "cat", "😀" * 1000])
def test_odd_texts_are_embedded(post, text):
    assert len(vectors(post(input=text))) == 1


def test_a_body_of_many_arrays_does_not_make_the_collector_run_again_and_again(post):
    # The first request loads what the second would load otherwise.
    assert post(input="law").status_code == 200
    runs = []
    gc.callbacks.append(lambda *_: runs.append(None))
    try:
        body = {"model": MODEL, "input": "law", "ignored": [[]] * 200_000}
        assert post(json.dumps(body).encode()).status_code == 200
    finally:
        gc.callbacks.pop()
    assert gc.isenabled()
    assert len(runs) < 100


def test_2048_short_texts_are_one_request(post):
    assert len(vectors(post(input=["a"] * 2048))) == 2048


def test_token_ids_are_refused_with_the_cure(post):
    for ids in ([1, 2], [[1, 2], [3]]):
        error = post(input=ids).json["error"]
        assert error["code"] == "token_ids_not_accepted"
        assert "check_embedding_ctx_length=False" in error["message"]


@pytest.mark.parametrize("input_", [[1, "a"], [[1], ["a"]], [[1, "a"], "b"]])
def test_what_begins_with_token_ids_is_refused_as_such(post, input_):
    assert post(input=input_).json["error"]["code"] == "token_ids_not_accepted"


@pytest.mark.settings(TOKEN_IDS="model")
class TestTokenIds:
    def test_ids_are_used_unchanged(self, post):
        first, second = vectors(post(input=[[1, 3, 4, 2], [7]]))
        np.testing.assert_array_equal(first, CAT)
        np.testing.assert_array_equal(second, vector([7]))

    def test_a_flat_list_is_one_text(self, post):
        response = post(input=[1, 3, 4, 2])
        np.testing.assert_array_equal(vectors(response)[0], CAT)
        assert response.json["usage"]["total_tokens"] == 4

    @pytest.mark.parametrize(
        ("input_", "index", "fragment"),
        [
            ([1, "a"], 1, "a token id, as the first item is, not a string"),
            ([1, True], 1, "not a boolean"),
            ([["a"]], 0, "whole numbers"),
            ([[1], "a"], 1, "not a string"),
            ([[1], ["a"]], 1, "token ids"),
        ],
    )
    def test_an_item_that_is_no_token_id_is_named(self, post, input_, index, fragment):
        error = post(input=input_).json["error"]
        assert (error["code"], error["param"]) == ("invalid_type", f"input[{index}]")
        assert fragment in error["message"]

    def test_texts_are_still_accepted(self, post):
        np.testing.assert_array_equal(vectors(post(input="a cat"))[0], CAT)

    def test_ids_over_the_window_are_cut_and_marked(self, post):
        response = post(input=[4] * 40)
        np.testing.assert_array_equal(vectors(response)[0], vector([4] * WINDOW))
        assert response.json["data"][0]["truncated"] is True

    @pytest.mark.parametrize("asked", [{"input_type": "query"}, {"prompt_name": "query"}])
    def test_ids_with_a_prompt_are_refused(self, post, asked):
        response = post(input=[1, 3, 4, 2], **asked)
        assert response.status_code == 400
        assert response.json["error"]["code"] == "token_ids_not_accepted"
        assert "without the prompt" in response.json["error"]["message"]

    def test_ids_are_accepted_with_an_input_type_that_has_no_prompt(self, post):
        np.testing.assert_array_equal(vectors(post(input=[1, 3, 4, 2], input_type="document")), [CAT])

    @pytest.mark.parametrize("id_", [9, 10**18, -1])
    def test_an_unknown_id_is_named(self, post, id_):
        response = post(json.dumps({"model": MODEL, "input": [[1], [2, id_]]}).encode())
        assert response.status_code == 400
        assert response.json["error"]["param"] == "input[1]"
        assert response.json["error"]["code"] == "token_ids_not_accepted"
