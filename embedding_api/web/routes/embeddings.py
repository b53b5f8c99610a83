"""POST /v1/embeddings: texts in, vectors out, in the shape of OpenAI's API."""

import base64
import math
import typing
from typing import Any

from flask import Response, current_app, request

from embedding_api.engine.backends import Task
from embedding_api.engine.engine import Embeddings
from embedding_api.errors import REPORTED, InvalidKeyError, NotFoundError
from embedding_api.request import REQUEST, Caller, Request
from embedding_api.service import service_of
from embedding_api.web import json_body, observe
from embedding_api.web.fields import Count, Flag, Texts, Word
from embedding_api.web.operation import COUNT, STRING, Routes, header, load_request, object_schema
from embedding_api.web.request_schema import RequestSchema

bp = Routes("embeddings")


class EmbeddingRequest(RequestSchema):
    """The body of POST /v1/embeddings."""

    input = Texts(required=True)
    """What to embed: one text, or several."""

    model = Word(required=True)
    """Name or alias of a model that is served."""

    encoding_format = Word("float", "base64", load_default="float")
    """The form of the vectors: numbers, or base64 of little-endian float32, which is smaller and faster."""

    dimensions = Count()
    """Return only so many leading components, scaled to length 1 again if the model normalizes. The default and the
    maximum are the model's own number."""

    user = Word()
    """Accepted, and not stored."""

    truncate = Flag(
        # Cohere and NVIDIA send capital letters, Elasticsearch's client for NVIDIA small letters.
        synonyms={"NONE": False, "none": False, "END": True, "end": True},
        unsupported=dict.fromkeys(
            ("START", "start"), "must be END or NONE, not START: the server can cut a text only at its end"
        ),
    )
    """true cuts a text to the model's window and reports it, false refuses it. END is another word for true, NONE for
    false. The default is the server's setting TRUNCATE."""

    input_type = Word(
        *typing.get_args(Task),
        # NVIDIA's word, and Cohere's.
        synonyms={"passage": "document", "search_query": "query", "search_document": "document"},
    )
    """The role of the texts in a search. Selects the model's own prompt or route for that role, if it has one.
    search_query is another word for query, passage and search_document for document."""

    prompt_name = Word()
    """The model's prompt to put before each text, instead of its default prompt and that of `input_type`. GET
    /v1/models lists the names."""


_EXAMPLE = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.1098761, 0.21182972, 0.46818143, 0.8508006]}],
    "model": "sentence-transformers/all-MiniLM-L6-v2",
    "usage": {"prompt_tokens": 8, "total_tokens": 8},
}
_FORMS = [
    {"title": "Numbers", "type": "array", "minItems": 1, "items": {"type": "number"}},
    {"title": "Base64", "type": "string", "contentEncoding": "base64"},
]
_SCHEMAS = {
    "Embeddings": object_schema(
        object={"const": "list"},
        data={"type": "array", "minItems": 1, "items": "Embedding", "description": "In the order of `input`."},
        model={**STRING, "description": "The model, as the request named it."},
        usage="Usage",
    )
    | {"examples": [_EXAMPLE]},
    "Embedding": object_schema(
        object={"const": "embedding"},
        index={**COUNT, "description": "The index of its text in `input`."},
        embedding={"description": "The vector; in base64 the bytes of little-endian float32.", "anyOf": _FORMS},
        truncated={"const": True, "description": "Present if the text was cut to the model's window."},
        optional=("truncated",),
    ),
    "Usage": object_schema(
        prompt_tokens={**COUNT, "description": "Tokens that the model read, special tokens and prompts included."},
        total_tokens={**COUNT, "description": "The same number."},
    ),
}
_HEADERS = {
    "Server-Timing": header("Where the time went, in milliseconds: `tokenize`, `queue`, `inference`, `total`.", STRING),
    "X-Truncated-Inputs": header(
        "How many texts were cut to the model's window; absent if none was.", {**COUNT, "minimum": 1}, is_required=False
    ),
}


def _examples(model: str) -> dict[str, Any]:
    one = {"model": model, "input": "The quick brown fox jumps over the lazy dog."}
    several = {"model": model, "input": ["First sentence to embed.", "Second sentence to embed."]}
    return {
        "text": {"summary": "A text", "value": one},
        "texts": {"summary": "Several, as base64", "value": {**several, "encoding_format": "base64"}},
    }


@bp.serve(
    "/v1/embeddings",
    "POST",
    aliases={"/embeddings": "create_embeddings_alias"},
    request=EmbeddingRequest,
    examples=_examples,
    schemas=_SCHEMAS,
    headers=_HEADERS,
    failures=set(REPORTED) - {InvalidKeyError, NotFoundError},
)
def create_embeddings() -> Response:
    """Turn texts into vectors.

    OpenAI's embeddings API. null means absent, unknown fields are ignored, and the body may have any Content-Type.
    `data` is in the order of `input`.
    """
    service = service_of(current_app)
    fields = load_request()
    embeddings = service.engine.embed(
        fields["model"],
        fields["input"],
        input_type=fields.get("input_type"),
        prompt_name=fields.get("prompt_name"),
        dimensions=fields.get("dimensions"),
        truncate=fields.get("truncate", service.settings.truncate),
        caller=_caller(service.settings.request_timeout_s),
        timing=observe.timing(),
    )
    observe.note(embeddings)
    response = json_body.response(_dump(embeddings, fields))
    if any(embeddings.truncated):
        response.headers["X-Truncated-Inputs"] = str(sum(embeddings.truncated))
    return response


def _caller(timeout_s: float) -> Caller:
    """Return the client, with its deadline. The worker has set that; another server has no record of the request."""
    record: Request | None = request.environ.get(REQUEST)
    caller = record.caller if record else Caller()
    if math.isinf(caller.deadline_s):
        caller.limit_wait(timeout_s, request.headers.get)
    return caller


def _dump(embeddings: Embeddings, fields: dict[str, Any]) -> dict[str, Any]:
    """Return OpenAI's list of embeddings, with `truncated` on each whose text was cut."""
    vectors: Any = embeddings.vectors
    if fields["encoding_format"] == "base64":
        vectors = [base64.b64encode(row).decode() for row in vectors.astype("<f4", copy=False)]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    for item, truncated in zip(data, embeddings.truncated, strict=True):
        if truncated:
            item["truncated"] = True
    usage = {"prompt_tokens": embeddings.n_tokens, "total_tokens": embeddings.n_tokens}
    return {"object": "list", "data": data, "model": fields["model"], "usage": usage}
