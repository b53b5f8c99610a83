"""POST /v1/embeddings: texts in, vectors out, as OpenAI's API has it."""

import base64
import contextlib
import math
from typing import Any

from flask import Blueprint, Response, current_app, request

from embedding_api.engine.engine import Embeddings
from embedding_api.request import CALLER, REFUSAL, Caller
from embedding_api.service import service_of
from embedding_api.web import json_body, observe

bp = Blueprint("embeddings", __name__)

# Headers in which OpenAI's SDKs say how many seconds they wait, anew with each retry. Python sends the first with every
# request, as 600 or 0.5. JavaScript sends the second with a call that has a timeout of its own, rounded down: 0 means
# less than a second.
TIMEOUT_HEADERS = ("x-stainless-read-timeout", "x-stainless-timeout")


@bp.post("/v1/embeddings")
@bp.post("/embeddings")
def create() -> Response:
    """Embeds the texts of the request."""
    service = service_of(current_app)
    settings, engine = service.settings, service.engine
    embedding_request = current_app.extensions["embedding_request"]
    if (refusal := request.environ.get(REFUSAL)) is not None:
        raise refusal
    wish = embedding_request.load(json_body.load())
    truncate = settings.truncate if wish["truncate"] is None else wish["truncate"]
    embeddings = engine.embed(
        wish["model"],
        wish["input"],
        input_type=wish["input_type"],
        prompt_name=wish["prompt_name"],
        dimensions=wish["dimensions"],
        truncate=truncate,
        caller=_caller(),
        timing=observe.timing(),
    )
    observe.note(embeddings)
    response = json_body.response(_dump(embeddings, wish))
    if any(embeddings.truncated):
        response.headers["X-Truncated-Inputs"] = str(sum(embeddings.truncated))
    return response


def _caller() -> Caller:
    """Who waits for the answer, as long as the settings allow and the client says that it does."""
    caller: Caller = request.environ.get(CALLER) or Caller()
    caller.wait_at_most(service_of(current_app).settings.request_timeout_s, "REQUEST_TIMEOUT_S")
    for header in TIMEOUT_HEADERS:
        caller.wait_at_most(_seconds(request.headers.get(header, "")), f"the client's own timeout ({header})")
    return caller


def _seconds(told: str) -> float:
    """A time that a client tells; infinity if it tells none, or nothing above zero."""
    with contextlib.suppress(ValueError):
        if (told_s := float(told)) > 0:
            return told_s
    return math.inf


def _dump(embeddings: Embeddings, wish: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's list of embeddings, and `truncated` on each that was cut."""
    vectors: Any = embeddings.vectors
    if wish["encoding_format"] == "base64":
        vectors = [base64.b64encode(row).decode() for row in vectors.astype("<f4", copy=False)]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    for item, truncated in zip(data, embeddings.truncated, strict=True):
        if truncated:
            item["truncated"] = True
    usage = {"prompt_tokens": embeddings.n_tokens, "total_tokens": embeddings.n_tokens}
    return {"object": "list", "data": data, "model": wish["model"], "usage": usage}
