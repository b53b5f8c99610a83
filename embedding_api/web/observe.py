"""What is seen of each request: its id, how long it took, a line in the log, a span. Never its texts or its key."""

import logging
import re
import time
import uuid
from http import HTTPMethod

from flask import Flask, Response, g, request

from embedding_api.engine.engine import Embeddings
from embedding_api.engine.scheduling.timing import Timing
from embedding_api.request import CALLER
from embedding_api.telemetry import log, metrics
from embedding_api.web.parts import parts

logger = logging.getLogger(log.ACCESS)

# A name that a client may give its request; the OpenAPI document tells it, too.
REQUEST_ID = r"[A-Za-z0-9._-]{1,128}"
# W3C's, for a log without OpenTelemetry, which would warn of some others: version, trace, parent, flags. Version 00
# has nothing behind them, later ones may; ff is none.
_TRACEPARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.{0,400})?"
)

# Blueprints whose requests get spans, refused ones included. Health checks would be most of all, and tell nothing.
_TRACED = frozenset({"embeddings", "models"})
# The blueprint whose requests are logged at DEBUG if they succeed: somebody asks every few seconds, for ever.
_HEALTH = "health"


def init_app(app: Flask) -> None:
    """Registers the hooks; the first `before_request` and the last `after_request` of all."""
    app.before_request(_begin)
    app.after_request(_end)
    app.teardown_request(lambda _: log.end_request())


def note(embeddings: Embeddings) -> None:
    """Lets the line of this request say what was computed for it, and `Server-Timing` where the time went."""
    g.embeddings = embeddings


def timing() -> Timing:
    """For the engine to tell where the time of this request goes."""
    g.timing = made = Timing()
    return made


def _begin() -> None:
    caller = request.environ.get(CALLER)
    # It may have waited for a thread.
    g.arrived_s = time.monotonic() if caller is None else caller.arrived_s
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if re.fullmatch(REQUEST_ID, given) else uuid.uuid4().hex
    given_trace = _TRACEPARENT.fullmatch(request.headers.get("traceparent", ""))
    tracing = parts().tracing
    if tracing is not None and request.blueprint in _TRACED and request.url_rule is not None:
        g.span = tracing.begin(
            request.method, request.url_rule.rule, request.scheme, given_trace[0] if given_trace else "", g.arrived_s
        )
    trace_id = ("span" in g and g.span.trace_id) or (given_trace["trace"] if given_trace else "")
    log.begin_request(request_id=g.request_id, **({"trace_id": trace_id} if trace_id else {}))


def _end(response: Response) -> Response:
    total_s = time.monotonic() - g.arrived_s
    response.headers["X-Request-ID"] = g.request_id
    fields = {
        # A method that is none, and a path, can be anything, a key included: told are those that exist, and the rule.
        "method": request.method if request.method in HTTPMethod.__members__ else "-",
        "route": request.url_rule.rule if request.url_rule else "-",
        "status": response.status_code,
        "ms": round(total_s * 1000, 1),
    }
    embeddings: Embeddings | None = g.get("embeddings")
    if embeddings is not None:
        name = embeddings.model.name
        fields |= {"model": name, "texts": len(embeddings.vectors), "tokens": embeddings.n_tokens}
        stages_s = _stages_s(embeddings.timing, total_s)
        for stage, taken_s in stages_s.items():
            metrics.STAGES.labels(name, stage).observe(taken_s)
        response.headers["Server-Timing"] = ", ".join(
            f"{stage};dur={taken_s * 1000:.2f}" for stage, taken_s in stages_s.items()
        )
    metrics.REQUESTS.labels(fields["route"], fields["method"], fields["status"], fields.get("model", "")).inc()
    is_healthy = request.blueprint == _HEALTH and response.status_code < 400
    logger.log(logging.DEBUG if is_healthy else logging.INFO, "request", extra={"fields": fields})
    if "span" in g:
        g.span.end(response.status_code, g.request_id, g.get("timing"), embeddings)
    return response


def _stages_s(timing: Timing, total_s: float) -> dict[str, float]:
    return {
        "tokenize": timing.tokenize_s,
        "queue": timing.queue_s,
        "inference": timing.inference_s,
        "total": total_s,
    }
