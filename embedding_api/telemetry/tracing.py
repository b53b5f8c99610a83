"""Traces: a span for each request, and spans for where its time went, to a collector that speaks OTLP over HTTP.

The one place that imports OpenTelemetry, and itself imported only where traces are wanted. No text and no key is in a
span; of what clients may choose freely, ids alone.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from embedding_api import __version__
from embedding_api.engine.engine import Embeddings
from embedding_api.engine.scheduling.timing import Timing
from embedding_api.settings import Settings

logger = logging.getLogger(__name__)

_NAME = "memementor-embedding-service"

# How long a process that ends waits for its last spans to be sent, and what share of the grace time that may be.
FLUSH_S, FLUSH_SHARE = 1.0, 1 / 8

# Batches of one request that get spans of their own: 2048 long texts make as many, and would fill the exporter's queue.
MAX_BATCH_SPANS = 100

_Attributes = Mapping[str, AttributeValue] | None

_propagator = TraceContextTextMapPropagator()


class Tracing:
    """What makes spans in this process. Nothing runs before `start`, so that a master can fork.

    Args:
        settings: Of which the endpoint, and where the service is. The rest is in OpenTelemetry's own variables.

    Raises:
        ValueError: One of those is malformed.
        OverflowError: One is far too large.
    """

    def __init__(self, settings: Settings) -> None:
        self._server: dict[str, AttributeValue] = {"server.address": settings.host, "server.port": settings.port}
        self._flush_s = min(FLUSH_S, settings.graceful_timeout_s * FLUSH_SHARE)
        self._outage = _Outage()
        # It would quote what it cannot read of OTEL_EXPORTER_OTLP_HEADERS, which holds keys.
        logging.getLogger("opentelemetry.util.re").addFilter(_hide_arguments)
        self._exporter = _Exporter(settings.otel_exporter_otlp_endpoint, self._outage)
        # What OpenTelemetry's variables say of the service comes first.
        told = OTELResourceDetector().detect().attributes
        resource = Resource.create({SERVICE_NAME: _NAME, SERVICE_VERSION: __version__, **told})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        # Its own variables are read and judged only when it is made, which starts a thread; this one ends here.
        BatchSpanProcessor(InMemorySpanExporter()).shutdown()  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()
        self._tracer: Tracer | None = None

    def start(self) -> Tracer:
        """Starts the thread that sends; in a worker, after the fork."""
        with self._lock:
            if self._tracer is None:
                self._outage.take_over()
                self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
                self._tracer = self._provider.get_tracer("embedding_api", __version__)
            return self._tracer

    def close(self) -> None:
        """Sends what is left, as far as there is time for it, and nothing more."""
        if self._tracer is not None:
            # It waits for attempts under way, and those for a collector that does not answer.
            last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
            last.start()
            last.join(self._flush_s)
            if not last.is_alive():
                self._outage.let_go()

    def begin(self, method: str, route: str, scheme: str, traceparent: str, begun_s: float) -> "RequestSpan":
        """The span of a request, which is to be ended.

        Args:
            method: Of HTTP.
            route: The rule of its path.
            scheme: http or https.
            traceparent: W3C's: which trace it belongs to, and whether that is recorded; a new one if it is malformed.
            begun_s: When it was there, on the monotonic clock.
        """
        attributes = {"http.request.method": method, "http.route": route, "url.scheme": scheme, **self._server}
        tracer, clock = self._tracer or self.start(), _Clock()
        span = tracer.start_span(
            f"{method} {route}",
            _propagator.extract({"traceparent": traceparent}),
            SpanKind.SERVER,
            attributes,
            start_time=clock.ns(begun_s),
        )
        return RequestSpan(tracer, span, clock)


class RequestSpan:
    """The span of one request.

    Attributes:
        trace_id: Of the trace that it belongs to; empty if OpenTelemetry is told to make none.
    """

    def __init__(self, tracer: Tracer, span: Span, clock: "_Clock") -> None:
        self._tracer = tracer
        self._span = span
        self._clock = clock
        context = span.get_span_context()
        self.trace_id = format_trace_id(context.trace_id) if context.is_valid else ""

    def end(self, status: int, request_id: str, timing: Timing | None, embeddings: Embeddings | None) -> None:
        """Ends it, with what became of the request.

        Args:
            status: Of HTTP.
            request_id: That its client was told.
            timing: Where its time went, if it came to the engine.
            embeddings: What its texts became, if they did.
        """
        if not self._span.is_recording():
            return
        ended_s = time.monotonic()
        self._span.set_attributes(
            {"http.response.status_code": status, "http.response.header.x-request-id": [request_id]}
        )
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(StatusCode.ERROR)
        if embeddings is not None:
            self._span.set_attributes(_of_embeddings(embeddings))
        if timing is not None:
            self._add_parts(timing, ended_s)
        self._span.end(self._clock.ns(ended_s))

    def _add_parts(self, timing: Timing, ended_s: float) -> None:
        if timing.read_s is not None:
            self._add(self._span, "tokenize", timing.read_s, timing.queued_s or ended_s)
        # Without one of both its texts never came to the queue.
        queue_ended_s = timing.begun_s or timing.ended_s
        if timing.queued_s is not None and queue_ended_s is not None:
            self._add(self._span, "queue", timing.queued_s, queue_ended_s)
        if timing.begun_s is None:
            return
        answered_s = timing.ended_s or ended_s
        inference = self._add(self._span, "inference", timing.begun_s, answered_s, {"batches": len(timing.trips)})
        for trip in timing.trips[:MAX_BATCH_SPANS]:
            attributes: dict[str, AttributeValue] = {
                "batch.id": trip.batch,
                "batch.texts": trip.n_texts,
                "batch.tokens": trip.n_tokens,
                "batch.seat": trip.seat,
                "batch.ended": trip.ended_s is not None,
            }
            self._add(inference, "batch", trip.begun_s, trip.ended_s or answered_s, attributes)

    def _add(self, parent: Span, name: str, begun_s: float, ended_s: float, attributes: _Attributes = None) -> Span:
        span = self._tracer.start_span(
            name, set_span_in_context(parent), attributes=attributes, start_time=self._clock.ns(begun_s)
        )
        span.end(self._clock.ns(ended_s))
        return span


def _of_embeddings(embeddings: Embeddings) -> dict[str, AttributeValue]:
    """In the words of OpenTelemetry's conventions for generative AI, where those have one."""
    n_texts, dim = embeddings.vectors.shape
    return {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.request.model": embeddings.model.name,
        "gen_ai.usage.input_tokens": embeddings.n_tokens,
        "gen_ai.embeddings.dimension.count": dim,
        "texts": n_texts,
    }


class _Clock:
    """Moments of the monotonic clock on the wall's, the same for all spans of a request."""

    def __init__(self) -> None:
        self._ahead_ns = time.time_ns() - time.monotonic_ns()

    def ns(self, moment_s: float) -> int:
        """Nanoseconds since 1970."""
        return self._ahead_ns + round(moment_s * 1e9)


def _hide_arguments(record: logging.LogRecord) -> bool:
    record.args = ("(hidden)",)
    return True


class _Exporter(OTLPSpanExporter):
    """OpenTelemetry's exporter, which also says whether spans arrive."""

    def __init__(self, endpoint: str, outage: "_Outage") -> None:
        session = requests.Session()
        session.hooks["response"].append(_refuse_redirect)
        super().__init__(f"{endpoint.rstrip('/')}/v1/traces", session=session)
        self._outage = outage

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Sends spans."""
        result = super().export(spans)
        self._outage.note(arrived=result is SpanExportResult.SUCCESS)
        return result


def _refuse_redirect(response: requests.Response, **_: object) -> None:
    # None is followed, and OpenTelemetry takes it for success.
    if 300 <= response.status_code < 400:
        response.close()
        raise requests.exceptions.TooManyRedirects


class _Outage(logging.Filter):
    """One line for as long as spans do not arrive, in the place of OpenTelemetry's several for each attempt."""

    _SENDS, _QUEUES = "opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal"

    def __init__(self) -> None:
        super().__init__()
        self._lasts = False
        self._reason = "no answer"

    def take_over(self) -> None:
        """Lets this filter see what those log that send."""
        for name in (self._SENDS, self._QUEUES):
            logging.getLogger(name).addFilter(self)

    def let_go(self) -> None:
        """Undoes `take_over`."""
        for name in (self._SENDS, self._QUEUES):
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Keeps the reason of each attempt that failed to itself; and that the queue is full while nothing arrives."""
        if record.name == self._SENDS:
            # What an exception says may quote a header, and so a key.
            arguments = record.args if isinstance(record.args, tuple) else ()
            record.args = tuple(type(one).__name__ if isinstance(one, Exception) else one for one in arguments)
            self._reason = record.getMessage()
            return False
        return not self._lasts

    def note(self, *, arrived: bool) -> None:
        """Spans were sent."""
        if arrived and self._lasts:
            logger.info("traces arrive again")
        if not arrived and not self._lasts:
            logger.warning(
                "traces do not arrive: %s; check the collector and OTEL_EXPORTER_OTLP_ENDPOINT", self._reason
            )
        self._lasts = not arrived
