"""Traces of real workers, as a collector receives them."""

import itertools
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.collector import collecting
from tests.server.conftest import MINILM, ROOT, free_port, until
from tests.server.faulty import APP, SLOW

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

# A fake model, which loads at once.
FAKE = (
    "from embedding_api.telemetry import log\n"
    "from embedding_api.app import create_app\n"
    "from embedding_api.settings import load_settings\n"
    "from embedding_api.engine.workers.exchange import Exchange\n"
    "from tests.fakes import fake_engine\n"
    "log.configure(load_settings())\n"
    "app = create_app(engine=fake_engine(exchange=Exchange(8)))\n"
)


@pytest.fixture(autouse=True)
def _variables(monkeypatch):
    """Remove OpenTelemetry's variables, and use no proxy for loopback."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def collector():
    with collecting() as collector:
        yield collector


@pytest.fixture
def launch_fake(launch, tmp_path):
    """Return a function that starts the service with a fake model."""
    (tmp_path / "wsgi.py").write_text(FAKE)
    conf = ("-c", str(ROOT / "gunicorn.conf.py"))
    return lambda **settings: launch(*conf, cwd=tmp_path, PYTHONPATH=str(ROOT), **settings)


def ask(server, text="a cat", model="org/fake", **headers):
    body = json.dumps({"model": model, "input": text})
    return server.request("POST", "/v1/embeddings", body, headers)


def test_two_requests_that_shared_a_batch_show_it_in_their_own_traces(launch, collector):
    """Given batches of half a second, when two requests wait for a running batch, then they share the next batch."""
    server = launch(APP, WORKERS="1", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_BSP_SCHEDULE_DELAY="50")
    numbers = itertools.count(1)

    def batches(trace_id):
        """Return the ids of the batches of the request in this trace."""
        (request,) = until(lambda: [span for span in collector.requests() if span.trace_id == trace_id], what="a span")
        (inference,) = collector.below(request)["inference"]
        return {batch.attributes["batch.id"] for batch in collector.below(inference)["batch"]}

    with ThreadPoolExecutor(3) as clients:
        slow = clients.submit(ask, server, [f"{SLOW} {'word ' * 240} {n}" for n in range(8)], MINILM)
        until(server.is_busy, what="work")

        def have_shared():
            """Return True if two requests shared a batch; they do not if a batch ends between them."""
            traces = [f"{next(numbers):032x}" for _ in range(2)]
            pair = [
                clients.submit(ask, server, f"number {trace}", MINILM, traceparent=f"00-{trace}-{PARENT}-01")
                for trace in traces
            ]
            assert {future.result()[0] for future in pair} == {200}
            one, other = map(batches, traces)
            return one == other != set()

        until(have_shared, what="a batch of both")
        assert slow.result()[0] == 200


def test_a_trace_goes_on_in_a_worker_and_is_in_the_line_of_the_request(launch_fake, collector):
    server = launch_fake(
        WORKERS="1", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint + "/", OTEL_BSP_SCHEDULE_DELAY="50"
    )
    assert ask(server, traceparent=f"00-{TRACE}-{PARENT}-01")[0] == 200
    (request,) = collector.requests()
    assert (request.trace_id, request.parent_id) == (TRACE, PARENT)
    assert set(collector.below(request)) == {"tokenize", "queue", "inference"}
    assert abs(request.end_ns - time.time_ns()) < 60e9
    status, _, headers = ask(server)
    assert status == 200
    until(lambda: f"request_id={headers['X-Request-ID']} trace_id=" in server.log, what="the line")
    (trace_id,) = re.findall(rf"request_id={headers['X-Request-ID']} trace_id=(\w+)", server.log)
    assert collector.requests(2)[-1].trace_id == trace_id
    # Health checks have no spans.
    assert {span.name for span in collector.spans if span.kind == 2} == {"POST /v1/embeddings"}


def test_each_worker_sends_for_itself_and_its_last_spans_when_it_ends(launch_fake, collector):
    """Given a delay of an hour between exports, when the workers end, then the collector has the spans of both."""
    server = launch_fake(WORKERS="2", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_BSP_SCHEDULE_DELAY="3600000")

    def by_both():
        ask(server)
        return len(set(re.findall(r"\[(\d+)\] request .* route=/v1/embeddings", server.log))) == 2

    until(by_both, what="requests to both workers")
    assert collector.spans == []
    assert server.stop() == 0
    n_requests = len(re.findall(r"\] request .* route=/v1/embeddings", server.log))
    assert len(collector.requests(n_requests)) == n_requests
    assert len({span.resource["service.instance.id"] for span in collector.spans}) == 2


def test_a_missing_collector_fails_no_request_and_costs_one_log_line(launch_fake):
    server = launch_fake(
        WORKERS="1",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}",
        OTEL_BSP_SCHEDULE_DELAY="20",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
    )

    def is_logged():
        assert ask(server)[0] == 200
        return "traces do not arrive" in server.log

    until(is_logged, what="the line")
    for _ in range(50):
        assert ask(server)[0] == 200
    assert server.stop(deadline_s=30) == 0
    lines = [line for line in server.log.splitlines() if "traces" in line]
    sent, away = lines
    assert "traces are sent endpoint=http://127.0.0.1:" in sent
    assert re.search(r" WARNING \[\d+\] traces do not arrive: .*check the collector", away)
    assert "Traceback" not in server.log


@pytest.mark.parametrize("is_on", [False, True])
def test_opentelemetry_is_imported_only_if_traces_are_on(launch_fake, collector, is_on):
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint} if is_on else {}
    server = launch_fake(WORKERS="1", PYTHONPROFILEIMPORTTIME="1", OTEL_SERVICE_NAME="x", **endpoint)
    assert ask(server, traceparent=f"00-{TRACE}-{PARENT}-01")[0] == 200
    assert server.stop() == 0
    assert f"trace_id={TRACE}" in server.log
    assert ("opentelemetry" in server.log) is is_on
    assert bool(collector.spans) is is_on


def test_without_opentelemetrys_packages_the_start_is_refused_in_one_line(launch, tmp_path):
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ImportError('as if it were not there')\n")
    server = launch(wait=False, PYTHONPATH=str(tmp_path), OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318")
    assert server.process.wait(60) == 1
    (line,) = server.log.splitlines()
    assert line.startswith("memementor-embedding-service cannot start: OTEL_EXPORTER_OTLP_ENDPOINT is set, but")
    assert "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http" in line
