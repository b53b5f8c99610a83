"""What is seen of each request: its id, how long it took, one line in the log. Never its texts or its key."""

import logging
import re
import time
import uuid
from http import HTTPMethod

from flask import Flask, Response, g, request

from embedding_api import log, metrics
from embedding_api.engine.engine import Embeddings

logger = logging.getLogger(log.ACCESS)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def init_app(app: Flask) -> None:
    """Registers the hooks; the first `before_request` and the last `after_request` of all."""
    app.before_request(_begin)
    app.after_request(_end)


def note(embeddings: Embeddings) -> None:
    """Lets the line of this request say what was computed for it, and `Server-Timing` where the time went."""
    g.embeddings = embeddings


def _begin() -> None:
    g.started = time.monotonic()
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _end(response: Response) -> Response:
    total_s = time.monotonic() - g.started
    response.headers["X-Request-ID"] = g.request_id
    fields = {
        "request_id": g.request_id,
        # A method that is none, and a path, can be anything, a key included: told are those that exist, and the rule.
        "method": request.method if request.method in HTTPMethod.__members__ else "-",
        "route": request.url_rule.rule if request.url_rule else "-",
        "status": response.status_code,
        "ms": round(total_s * 1000, 1),
    }
    embeddings: Embeddings | None = g.get("embeddings")
    if embeddings is not None:
        timing = embeddings.timing
        spans = {
            "tokenize": timing.tokenize_s,
            "queue": timing.queue_s,
            "inference": timing.inference_s,
            "total": total_s,
        }
        for name, part_s in spans.items():
            metrics.STAGES.labels(embeddings.model.name, name).observe(part_s)
        response.headers["Server-Timing"] = ", ".join(
            f"{name};dur={part_s * 1000:.2f}" for name, part_s in spans.items()
        )
        fields |= {"model": embeddings.model.name, "texts": len(embeddings.vectors), "tokens": embeddings.n_tokens}
    metrics.REQUESTS.labels(fields["route"], fields["method"], fields["status"], fields.get("model", "")).inc()
    logger.info("request", extra={"fields": fields})
    return response
