"""POST /v1/embeddings: texts in, vectors out, as OpenAI's API has it."""

import base64
from typing import Any

from flask import Blueprint, Response

from embedding_api.engine.engine import Embeddings
from embedding_api.web import answer, body, observe
from embedding_api.web.parts import parts

bp = Blueprint("embeddings", __name__)


@bp.post("/v1/embeddings")
@bp.post("/embeddings")
def create() -> Response:
    """Embeds the texts of the request."""
    settings, engine, embedding_request = parts()
    wish = embedding_request.load(body.read())
    truncate = settings.truncate if wish["truncate"] is None else wish["truncate"]
    embeddings = engine.embed(wish["model"], wish["input"], dimensions=wish["dimensions"], truncate=truncate)
    observe.note(embeddings)
    response = answer.json(_dump(embeddings, wish))
    if any(embeddings.truncated):
        response.headers["X-Truncated-Inputs"] = str(sum(embeddings.truncated))
    return response


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
