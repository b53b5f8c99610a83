"""The official OpenAI clients for Python, without any option, and for JavaScript."""

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
from sentence_transformers import SentenceTransformer

from tests import models
from tests.server.conftest import MINILM


@pytest.fixture(scope="module")
def keyed(_launch):
    return _launch(API_KEY_SECRET="the-key")


@pytest.fixture
def client(keyed):
    with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="the-key") as client:
        yield client


def test_a_single_text(client, keyed):
    answer = client.embeddings.create(model=MINILM, input="a cat")
    assert len(answer.data) == 1
    assert len(answer.data[0].embedding) == 384
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == (MINILM, 4, 4)
    assert answer._request_id


def test_100_texts_in_their_order_as_base64_and_as_floats(client):
    texts = [f"text number {n}" for n in range(100)]
    answer = client.embeddings.create(model=MINILM, input=texts)
    assert [item.index for item in answer.data] == list(range(100))
    floats = client.embeddings.create(model=MINILM, input=texts, encoding_format="float")
    for text_base64, text_float in zip(answer.data, floats.data, strict=True):
        np.testing.assert_array_equal(np.float32(text_base64.embedding), np.float32(text_float.embedding))
    alone = client.embeddings.create(model=MINILM, input=texts[57]).data[0].embedding
    np.testing.assert_allclose(answer.data[57].embedding, alone, atol=1e-5)


def test_a_wrong_key(client):
    with pytest.raises(openai.AuthenticationError) as refused:
        client.with_options(api_key="wrong").embeddings.create(model=MINILM, input="a")
    assert refused.value.code == "invalid_api_key"


def test_a_wrong_model(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="text-embedding-3-small", input="a")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("text-embedding-3-small")


def test_wrong_texts(client):
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.embeddings.create(model=MINILM, input=["a", ""])
    assert refused.value.param == "input[1]"
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model=MINILM, input=[791, 4062])


def test_dimensions_and_the_list_of_models(client):
    assert len(client.embeddings.create(model=MINILM, input="a", dimensions=5).data[0].embedding) == 5
    assert [model.id for model in client.models.list()] == [MINILM]
    assert client.models.retrieve(MINILM).owned_by == "sentence-transformers"


def test_a_base_url_without_v1_lists_and_embeds(keyed):
    with openai.OpenAI(base_url=keyed.url, api_key="the-key") as client:
        assert [model.id for model in client.models.list()] == [MINILM]
        assert client.models.retrieve(MINILM).id == MINILM
        assert len(client.embeddings.create(model=MINILM, input="a cat").data) == 1
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("text-embedding-3-small")


# More work than the server can do in a second.
N_TEXTS, N_WORDS = 2048, 250


def test_the_python_client_is_answered_in_the_time_that_it_says(client):
    """Given a client that sends a timeout of 1 s but waits longer, then the server answers after about that time."""

    def wait(request):
        request.extensions["timeout"]["read"] = 60

    patient = openai.DefaultHttpxClient(event_hooks={"request": [wait]})
    hurried = client.with_options(http_client=patient, timeout=1, max_retries=0)
    texts = [f"{n} {'word ' * N_WORDS}" for n in range(N_TEXTS)]
    with patient, pytest.raises(openai.InternalServerError) as refused:
        hurried.embeddings.create(model=MINILM, input=texts)
    assert (refused.value.status_code, refused.value.code) == (504, "deadline_exceeded")
    assert "within the 1 s of the client's own timeout (x-stainless-read-timeout)" in refused.value.message


JAVASCRIPT = """
import OpenAI from "openai";
const [url, model, nTexts, nWords] = process.argv.slice(2);
// The client itself does not time out, so that it reads the server's answer.
const patient = (url, init) => fetch(url, { ...init, signal: undefined });
const client = new OpenAI({ baseURL: url, apiKey: "the-key", maxRetries: 0, fetch: patient });
const names = (await client.models.list()).data.map((model) => model.id);
const name = (await client.models.retrieve(model)).id;
const dimensions = (await client.embeddings.create({ model, input: "a cat" })).data[0].embedding.length;
const input = Array.from({ length: +nTexts }, (_, n) => `${n} ${"word ".repeat(+nWords)}`);
// The request header has the timeout of the call, and not that of the client.
const error = await client.embeddings.create({ model, input }, { timeout: 1000 }).catch((error) => error);
const { status, code, message } = error;
console.log(JSON.stringify({ names, name, dimensions, status, code, message }));
"""


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not here; it installs the client for JavaScript")
def test_the_javascript_client_lists_embeds_and_is_answered_in_the_time_that_it_says(keyed, javascript):
    script = javascript / "ask.mjs"
    script.write_text(JAVASCRIPT)
    command = ["node", script, keyed.url, MINILM, str(N_TEXTS), str(N_WORDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    told = json.loads(done.stdout)
    message = told.pop("message")
    assert told == {
        "names": [MINILM],
        "name": MINILM,
        "dimensions": 384,
        "status": 504,
        "code": "deadline_exceeded",
    }
    assert "within the 1 s of the client's own timeout (x-stainless-timeout)" in message


@pytest.fixture(scope="module")
def javascript(tmp_path_factory):
    """A folder with OpenAI's client for JavaScript."""
    folder = tmp_path_factory.mktemp("javascript")
    (folder / "package.json").write_text("{}")
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "openai@6.49.0"]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_queries_and_documents_of_a_model_with_prompts(launch, tmp_path):
    """Given many requests at the same time, then each text gets the prompt of its own request."""
    source = models.save(models.bert_prompts, tmp_path)
    server = launch(SUPPORTED_MODELS=f"m={source}")
    reference = SentenceTransformer(str(source), device="cpu")
    texts = [f"text number {n} of several" for n in range(24)]
    wanted = {
        (): reference.encode(texts),
        ("input_type", "query"): reference.encode_query(texts),
        ("input_type", "document"): reference.encode_document(texts),
        ("prompt_name", "topic"): reference.encode(texts, prompt_name="topic"),
    }
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
        ThreadPoolExecutor(len(wanted)) as clients,
    ):

        def ask(asked, start):
            extra = dict([asked] if asked else [])
            answer = client.embeddings.create(model="m", input=texts[start : start + 4], extra_body=extra)
            np.testing.assert_allclose(
                [item.embedding for item in answer.data], wanted[asked][start : start + 4], atol=1e-5
            )

        asks = [clients.submit(ask, asked, start) for start in range(0, len(texts), 4) for asked in wanted]
        for done in asks:
            done.result()
        with pytest.raises(openai.BadRequestError, match="which has 'query', 'document', 'topic'") as refused:
            client.embeddings.create(model="m", input="a", extra_body={"prompt_name": "passage"})
    assert (refused.value.code, refused.value.param) == ("unknown_prompt", "prompt_name")
