"""Traces: a span for each request and for its parts, sent to a collector that speaks OTLP over HTTP.

The only module that imports OpenTelemetry. It is imported only if traces are wanted. A span holds no text and no key;
of the values that clients choose freely it holds ids alone.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from embedding_api import __version__
from embedding_api.errors import ScarcityError
from embedding_api.settings import Settings

logger = logging.getLogger(__name__)

Attributes = Mapping[str, str | bool | int | float]

_NAME = "memementor-embedding-service"

# Seconds that a process waits at its end for its last spans to be sent, and the share of GRACEFUL_TIMEOUT_S that this
# may be.
FLUSH_S, FLUSH_SHARE = 1.0, 1 / 8

_propagator = TraceContextTextMapPropagator()


class Tracing:
    """Makes the spans of this process. It starts no thread before `start`, so that a master can fork.

    Args:
        settings: Gives the collector's endpoint and the service's address. OpenTelemetry's own variables give the rest.

    Raises:
        ValueError: One of OpenTelemetry's variables is malformed.
        OverflowError: One of OpenTelemetry's variables is far too large.

    Attributes:
        flush_s: Most seconds that `close` takes.
    """

    def __init__(self, settings: Settings) -> None:
        self._server: Attributes = {"server.address": settings.host, "server.port": settings.port}
        self.flush_s = min(FLUSH_S, settings.graceful_timeout_s * FLUSH_SHARE)
        # This logger quotes what it cannot parse of OTEL_EXPORTER_OTLP_HEADERS, which holds keys.
        logging.getLogger("opentelemetry.util.re").addFilter(_hide_arguments)
        self._exporter = _Exporter(settings.otel_exporter_otlp_endpoint)
        # OpenTelemetry's variables override our name and version.
        from_variables = OTELResourceDetector().detect().attributes
        resource = Resource.create({SERVICE_NAME: _NAME, SERVICE_VERSION: __version__, **from_variables})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        # Only the constructor checks its variables. It also starts a thread, which shutdown() ends.
        BatchSpanProcessor(InMemorySpanExporter()).shutdown()  # type: ignore[no-untyped-call] # it has no annotation
        self._lock = threading.Lock()
        self._tracer: Tracer | None = None

    def start(self) -> Tracer:
        """Start the thread that sends spans. A worker calls this after the fork.

        Raises:
            ScarcityError: The thread cannot be started.
        """
        with self._lock:
            if self._tracer is None:
                try:
                    self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
                except RuntimeError as error:
                    raise ScarcityError("a thread for traces") from error
                self._tracer = self._provider.get_tracer("embedding_api", __version__)
            return self._tracer

    def close(self) -> None:
        """Send the spans that are left, as far as the time allows, and stop."""
        if self._tracer is not None:
            # shutdown() waits for a collector that does not respond, so it runs in a thread that we can leave behind.
            last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
            last.start()
            last.join(self.flush_s)

    def begin(self, method: str, route: str, scheme: str, traceparent: str, begun_s: float) -> "RequestSpan":
        """Return the span of a request. The caller must end it.

        Args:
            method: HTTP method.
            route: The route's rule, such as `/v1/models/<id>`.
            scheme: http or https.
            traceparent: The W3C header. If it is malformed or empty, the span begins a new trace.
            begun_s: When the request had arrived, in seconds on the monotonic clock.
        """
        attributes = {"http.request.method": method, "http.route": route, "url.scheme": scheme, **self._server}
        tracer, wall_ns = self._tracer or self.start(), _wall_clock()
        context, begun_ns = _propagator.extract({"traceparent": traceparent}), wall_ns(begun_s)
        span = tracer.start_span(f"{method} {route}", context, SpanKind.SERVER, attributes, start_time=begun_ns)
        return RequestSpan(tracer, span, wall_ns)


class RequestSpan:
    """The span of one request.

    Attributes:
        trace_id: Id of its trace; empty if OpenTelemetry's variables disable tracing.
        is_recording: False if nobody will see the span, nor any below it.
    """

    def __init__(self, tracer: Tracer, span: Span, wall_ns: Callable[[float], int]) -> None:
        self._tracer = tracer
        self._span = span
        self._wall_ns = wall_ns
        self.is_recording = span.is_recording()
        context = span.get_span_context()
        self.trace_id = format_trace_id(context.trace_id) if context.is_valid else ""

    def add(
        self, name: str, begun_s: float, ended_s: float, attributes: Attributes | None = None, above: Span | None = None
    ) -> Span:
        """Add a span below this one, or below another that was added.

        Args:
            name: Name of the span.
            begun_s: Start, in seconds on the monotonic clock.
            ended_s: End, in seconds on the monotonic clock.
            attributes: Attributes of the span.
            above: What an earlier call returned, if the span is below that one.
        """
        context, begun_ns = set_span_in_context(above or self._span), self._wall_ns(begun_s)
        span = self._tracer.start_span(name, context, attributes=attributes, start_time=begun_ns)
        span.end(self._wall_ns(ended_s))
        return span

    def end(self, status: int, request_id: str, attributes: Attributes) -> None:
        """End the span.

        Args:
            status: HTTP status of the response.
            request_id: Value of the response's X-Request-ID header.
            attributes: Further attributes of the span.
        """
        self._span.set_attributes(
            {"http.response.status_code": status, "http.response.header.x-request-id": [request_id], **attributes}
        )
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(StatusCode.ERROR)
        self._span.end(self._wall_ns(time.monotonic()))


def _wall_clock() -> Callable[[float], int]:
    """Return a function from seconds on the monotonic clock to nanoseconds since 1970, for all spans of a request."""
    offset_ns = time.time_ns() - time.monotonic_ns()
    return lambda moment_s: offset_ns + round(moment_s * 1e9)


def _hide_arguments(record: logging.LogRecord) -> bool:
    record.args = ("(hidden)",)
    return True


class _Session(requests.Session):
    """A session that remembers why its last request failed.

    Attributes:
        failure: The class of the exception, or the HTTP status. Not the exception's message: it may quote a header, and
            so a key.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure = "no response"

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send a request. A redirect raises, because nobody follows it and OpenTelemetry counts it as success."""
        try:
            response = super().request(*args, **kwargs)
            if 300 <= response.status_code < 400:
                response.close()
                raise requests.exceptions.TooManyRedirects
        except Exception as error:
            self.failure = type(error).__name__
            raise
        self.failure = f"HTTP status {response.status_code}"
        return response


class _Exporter(OTLPSpanExporter):
    """OpenTelemetry's exporter, which logs one line when spans stop arriving, and one when they arrive again."""

    def __init__(self, endpoint: str) -> None:
        self._http = _Session()
        self._fails = False
        super().__init__(f"{endpoint.rstrip('/')}/v1/traces", session=self._http)
        # OpenTelemetry logs several lines for each attempt, which may quote a header, and so a key.
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(lambda _: False)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans."""
        result = super().export(spans)
        fails = result is not SpanExportResult.SUCCESS
        if fails and not self._fails:
            logger.warning(
                "traces do not arrive: %s; check the collector and OTEL_EXPORTER_OTLP_ENDPOINT", self._http.failure
            )
        elif self._fails and not fails:
            logger.info("traces arrive again")
        self._fails = fails
        return result
