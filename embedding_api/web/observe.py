"""What each request leaves behind: its id, its access line, its timing and its span. Never its texts or its key."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from flask import Flask, Response, current_app, g, request
from werkzeug.routing import Rule

from embedding_api.engine.engine import Embeddings
from embedding_api.engine.scheduling.timing import Timing
from embedding_api.request import REQUEST
from embedding_api.service import service_of
from embedding_api.telemetry import access, log, metrics

if TYPE_CHECKING:
    # OpenTelemetry is optional.
    from embedding_api.telemetry.tracing import Attributes, RequestSpan

# Of endpoints whose requests have spans, refused requests included. Health checks would outnumber all others.
_TRACED = ("embeddings.", "models.")
# Batches of one request that get a span. 2048 long texts make as many batches, which would fill the exporter's queue.
MAX_BATCH_SPANS = 100


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


def begin(
    app: Flask, route: Rule | None, method: str, scheme: str, header: Callable[[str, str], str], arrived_s: float
) -> "tuple[str, RequestSpan | None]":
    """Let the log lines of this thread carry the ids of a request, until `log.end_request`.

    Args:
        app: The application with its service.
        route: The route of the request; None if there is none.
        method: Its method.
        scheme: http or https.
        header: Returns the value of a header by its name, or the second argument if it is missing.
        arrived_s: When it had arrived, in seconds on the monotonic clock.

    Returns:
        The id of the request, and its span, which the caller must end; None if it has none.
    """
    request_id, traceparent = access.request_id(header("x-request-id", "")), header("traceparent", "")
    trace_id, tracing, span = access.trace_id(traceparent), service_of(app).tracing, None
    if tracing is not None and route is not None and route.endpoint.startswith(_TRACED):
        span = tracing.begin(method, route.rule, scheme, traceparent if trace_id else "", arrived_s)
        trace_id = span.trace_id or trace_id
    log.begin_request(request_id=request_id, **({"trace_id": trace_id} if trace_id else {}))
    return request_id, span


def _begin() -> None:
    record = request.environ.get(REQUEST)
    # The request may have waited for a thread.
    g.arrived_s = time.monotonic() if record is None else record.caller.arrived_s
    g.request_id, g.span = begin(
        current_app, request.url_rule, request.method, request.scheme, request.headers.get, g.arrived_s
    )


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
    if g.span is not None:
        if g.span.is_recording and "timing" in g:
            _add_stages(g.span, g.timing)
        g.span.end(response.status_code, g.request_id, _attributes(embeddings) if embeddings else {})
    return response


def _attributes(embeddings: Embeddings) -> "Attributes":
    """Return the attributes of a request's span; named by OpenTelemetry's conventions for generative AI if possible."""
    n_texts, dim = embeddings.vectors.shape
    return {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.request.model": embeddings.model.name,
        "gen_ai.usage.input_tokens": embeddings.n_tokens,
        "gen_ai.embeddings.dimension.count": dim,
        "texts": n_texts,
    }


def _add_stages(request: "RequestSpan", timing: Timing) -> None:
    """Add a span for each stage that a request reached. A stage that has not ended ends now."""
    now_s = time.monotonic()
    if timing.read_s is not None:
        request.add("tokenize", timing.read_s, timing.queued_s or now_s)
    # A request without either moment was refused before its texts reached the queue.
    queue_ended_s = timing.handed_over_s or timing.ended_s
    if timing.queued_s is not None and queue_ended_s is not None:
        request.add("queue", timing.queued_s, queue_ended_s)
    if timing.handed_over_s is not None:
        ended_s = timing.ended_s or now_s
        inference = request.add("inference", timing.handed_over_s, ended_s, {"batches": len(timing.runs)})
        for run in timing.runs[:MAX_BATCH_SPANS]:
            known: Attributes = {
                "batch.id": run.batch,
                "batch.texts": run.n_texts,
                "batch.tokens": run.n_tokens,
                "batch.seat": run.seat,
                "batch.ended": run.ended_s is not None,
            }
            request.add("batch", run.handed_over_s, run.ended_s or ended_s, known, above=inference)
