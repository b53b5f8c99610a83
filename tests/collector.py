"""A collector of traces on loopback. It can be slow, stop, and start again."""

import http.server
import threading
from contextlib import contextmanager
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.conftest import until


class Span(NamedTuple):
    """One received span. Its ids are hexadecimal digits."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start_ns: int
    end_ns: int
    is_error: bool
    attributes: dict
    resource: dict


def _values(pairs) -> dict:
    def value(of):
        kind = of.WhichOneof("value")
        return [value(item) for item in of.array_value.values] if kind == "array_value" else getattr(of, kind)

    return {pair.key: value(pair.value) for pair in pairs}


class Collector:
    """A running collector, and what it has received.

    Attributes:
        endpoint: Address of the collector, for OTEL_EXPORTER_OTLP_ENDPOINT.
        spans: Received spans, in order of arrival.
        bodies: Bodies of the received requests, in order of arrival.
        proceed: While this is cleared, the collector answers no request.
        status: Status of its responses.
    """

    def __init__(self, port=0) -> None:
        self.spans: list[Span] = []
        self.bodies: list[bytes] = []
        self.status = 200
        self.proceed = threading.Event()
        self.proceed.set()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert collector.proceed.wait(60), "a test held an answer back and never let it go"
                collector._take(body)
                is_right = (self.path, self.headers["Content-Type"]) == ("/v1/traces", "application/x-protobuf")
                self.send_response(collector.status if is_right else 404)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def _take(self, body):
        self.bodies.append(body)
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in group.scope_spans:
                self.spans += [
                    Span(
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.kind,
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        span.status.code == span.status.STATUS_CODE_ERROR,
                        _values(span.attributes),
                        _values(group.resource.attributes),
                    )
                    for span in scope.spans
                ]

    def close(self):
        self.proceed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def requests(self, n=1) -> list[Span]:
        """Wait for `n` spans of requests, and return all. A span arrives after the spans below it."""
        found = lambda: [span for span in list(self.spans) if span.kind == 2]  # noqa: E731
        return until(lambda: len(found()) >= n and found(), deadline_s=30, what=f"{n} spans")

    def below(self, parent) -> dict[str, list[Span]]:
        """Return the spans directly below a span, by name."""
        below = [span for span in list(self.spans) if span.parent_id == parent.span_id]
        return {span.name: [other for other in below if other.name == span.name] for span in below}


@contextmanager
def collecting(port=0):
    """Run a collector, on this port if it is not 0."""
    collector = Collector(port)
    try:
        yield collector
    finally:
        collector.close()
