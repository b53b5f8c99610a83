"""What each request leaves behind: its id, its access line, its timing and its span. Never its texts or its key."""

import logging
import time

from flask import Flask, Response, current_app, g, request

from embedding_api.engine.engine import Embeddings
from embedding_api.engine.scheduling.timing import Timing
from embedding_api.request import REQUEST
from embedding_api.service import service_of
from embedding_api.telemetry import access, log, metrics
from embedding_api.web import spans

# Of endpoints whose requests have spans, refused requests included. Health checks would outnumber all others.
TRACED = ("embeddings.", "models.")


def init_app(app: Flask) -> None:
    """Register the hooks. `_begin` must run before all others, and `_end` after them."""
    app.before_request(_begin)
    app.after_request(_end)
    app.teardown_request(lambda _: log.end_request())


def note(embeddings: Embeddings) -> None:
    """Add what was computed to this request's access line, span and `Server-Timing`."""
    g.embeddings = embeddings


def timing() -> Timing:
    """Return the record in which the engine writes where the time of this request goes."""
    g.timing = made = Timing()
    return made


def _begin() -> None:
    record = request.environ.get(REQUEST)
    # The request may have waited for a thread.
    g.arrived_s = time.monotonic() if record is None else record.caller.arrived_s
    g.request_id = access.request_id(request.headers.get("X-Request-ID", ""))
    traceparent = request.headers.get("traceparent", "")
    trace_id = access.trace_id(traceparent)
    tracing = service_of(current_app).tracing
    if tracing is not None and request.url_rule is not None and request.url_rule.endpoint.startswith(TRACED):
        g.span = tracing.begin(
            request.method, request.url_rule.rule, request.scheme, traceparent if trace_id else "", g.arrived_s
        )
        trace_id = g.span.trace_id or trace_id
    log.begin_request(request_id=g.request_id, **({"trace_id": trace_id} if trace_id else {}))


def _end(response: Response) -> Response:
    duration_s = time.monotonic() - g.arrived_s
    response.headers["X-Request-ID"] = g.request_id
    embeddings: Embeddings | None = g.get("embeddings")
    computed: dict[str, str | int] = {}
    if embeddings is not None:
        name = embeddings.model.name
        computed = {"model": name, "texts": len(embeddings.vectors), "tokens": embeddings.n_tokens}
        stages_s = {
            "tokenize": embeddings.timing.tokenize_s,
            "queue": embeddings.timing.queue_s,
            "inference": embeddings.timing.inference_s,
            "total": duration_s,
        }
        for stage, stage_s in stages_s.items():
            metrics.STAGES.labels(name, stage).observe(stage_s)
        response.headers["Server-Timing"] = ", ".join(f"{stage};dur={s * 1000:.2f}" for stage, s in stages_s.items())
    # Load balancers ask every few seconds.
    is_healthy = request.blueprint == "health" and response.status_code < 400
    access.record(
        request.method,
        request.url_rule.rule if request.url_rule else "",
        response.status_code,
        duration_s,
        code=g.get("error_code"),
        level=logging.DEBUG if is_healthy else logging.INFO,
        **computed,
    )
    if "span" in g:
        attributes = spans.attributes(embeddings) if embeddings else {}
        parts = spans.parts(g.timing) if "timing" in g else []
        g.span.end(response.status_code, g.request_id, attributes, parts)
    return response
