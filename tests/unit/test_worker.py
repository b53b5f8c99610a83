"""The worker in a thread of the test, on a real listener and without a master. tests/server tests it in Gunicorn."""

import contextlib
import functools
import http.client
import json
import logging
import os
import signal
import socket
import threading
from types import SimpleNamespace

import pytest
from gunicorn.config import Config

from embedding_api.app import create_app
from embedding_api.errors import OverloadedError
from embedding_api.server import flags
from embedding_api.server import worker as worker_module
from embedding_api.server.worker import Worker
from embedding_api.settings import load_settings
from embedding_api.telemetry import log
from embedding_api.telemetry.metrics import counters
from tests import conftest
from tests.fakes import fake_engine, fake_model

until = functools.partial(conftest.until, deadline_s=10)

BODY = json.dumps({"model": "org/fake", "input": "a cat"})
# It needs a thread, since the loop answers only short bodies itself.
LONG_BODY = json.dumps({"model": "org/fake", "input": "a cat", "user": "x" * 1024})


@pytest.fixture
def model():
    return fake_model()


@pytest.fixture
def engine(model, no_leaked_threads):
    engine = fake_engine(model, inference_timeout_s=60)
    engine.start()
    yield engine
    model.route.backend.proceed.set()
    engine.close()


@pytest.fixture
def worker(request, engine, clean_settings, monkeypatch):
    marker = request.node.get_closest_marker("settings")
    for name, value in (marker.kwargs if marker else {}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CLIENT_TIMEOUT_S", "1")
    monkeypatch.setenv("DRAIN_S", "1")
    app = create_app(load_settings(), engine)
    config = Config()
    for name, value in {"threads": 2, "keepalive": 75, "worker_connections": 50, "graceful_timeout": 5}.items():
        config.set(name, value)
    listener = socket.create_server(("127.0.0.1", 0))
    gunicorn_app = SimpleNamespace(wsgi=lambda: app)
    worker = Worker(1, os.getppid(), [listener], gunicorn_app, 30, config, logging.getLogger("gunicorn.test"))
    worker.log = SimpleNamespace(access=lambda *_: None, debug=lambda *_: None, exception=logging.exception)
    # The steps of `init_process` without the signal handlers, which only a main thread may set.
    monkeypatch.setattr("gunicorn.workers.base.Worker.init_process", lambda self: (self.load_wsgi(), self.run()))
    thread = threading.Thread(target=worker.init_process)
    thread.start()
    until(lambda: hasattr(worker, "requests"), what="the start")
    worker.port = listener.getsockname()[1]
    yield worker
    worker.alive = False
    thread.join(10)
    assert not thread.is_alive()
    listener.close()
    worker.tmp.close()


@pytest.fixture
def ask(worker):
    def ask(method="GET", path="/health/live", body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, json.loads(response.read()), response.headers

    return ask


def raw(worker, request, *, ends=False):
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as client:
        client.sendall(request)
        if ends:
            client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_requests_are_answered_on_kept_connections(worker):
    connection = http.client.HTTPConnection("127.0.0.1", worker.port, timeout=10)
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("POST", "/v1/embeddings", BODY)
            response = connection.getresponse()
            assert response.status == 200
            assert len(json.loads(response.read())["data"]) == 1


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (b"GET / HTTP/9.9\r\n\r\n", 400, "invalid_request"),
        (b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n\r\n", 414, "uri_too_long"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: this\r\nContent-Length: 1\r\n\r\nx", 417, "expectation_failed"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{", 408, "request_timeout"),
        (b"\x16\x03\x01", 400, "invalid_request"),
    ],
)
def test_what_never_reaches_the_application_is_told_in_the_envelope(worker, request_, status, code):
    head, _, body = raw(worker, request_).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert json.loads(body)["error"]["code"] == code
    for header in (b"Connection: close", b"Server: ", b"Date: ", b"X-Request-ID: "):
        assert header in head


def test_a_full_queue_is_told_while_every_thread_waits(worker, ask, engine, model, monkeypatch):
    """Given more requests than threads, then one waits, liveness is answered, and a full queue refuses requests."""
    model.route.backend.proceed.clear()
    threads = [threading.Thread(target=ask, args=("POST", "/v1/embeddings", LONG_BODY)) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: worker.requests.pool.waiting)
    assert ask()[0] == 200
    monkeypatch.setattr(engine.runner.admission, "is_full", lambda: True)
    monkeypatch.setattr(engine.runner.admission, "overloaded", lambda: OverloadedError("full", retry_after_s=3))
    status, body, headers = ask("POST", "/v1/embeddings", BODY)
    assert (status, body["error"]["code"], headers["Retry-After"]) == (429, "server_overloaded", "3")
    assert ask("GET", "/health/ready")[0] == 200
    model.route.backend.proceed.set()
    for thread in threads:
        thread.join(10)


@pytest.fixture
def full(engine, monkeypatch):
    """Make the queue full."""
    monkeypatch.setattr(engine.runner.admission, "is_full", lambda: True)
    monkeypatch.setattr(engine.runner.admission, "overloaded", lambda: OverloadedError("full", retry_after_s=3))


def counted():
    """Return the number of requests for embeddings with 429, by the counter of requests and by that of refusals."""
    value = conftest.samples(counters)
    labels = {"route": "/v1/embeddings", "method": "POST", "status": "429", "model": ""}
    return (
        value("embeddings_http_requests_total", labels) or 0,
        value("embeddings_requests_refused_total", {"reason": "server_overloaded"}) or 0,
    )


def test_a_refusal_needs_no_thread_and_leaves_what_an_answer_leaves(worker, ask, full, caplog):
    """The refusal has the client's id, is counted, and has an access line with the trace, the route and the status."""
    n_requests, n_refusals = counted()
    ids = {"X-Request-ID": "id-1", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    caplog.handler.addFilter(log.add_ids)
    with caplog.at_level(logging.INFO):
        status, _, headers = ask("POST", "/v1/embeddings", BODY, ids)
    assert (status, headers["X-Request-ID"], headers["Connection"]) == (429, "id-1", "keep-alive")
    assert {"Server", "Date", "Content-Type"} <= set(headers)
    (line,) = (record for record in caplog.records if record.name == "embedding_api.access")
    line.fields.pop("ms")
    assert line.fields == {
        "request_id": "id-1",
        "trace_id": "a" * 32,
        "method": "POST",
        "route": "/v1/embeddings",
        "status": 429,
    }
    assert counted() == (n_requests + 1, n_refusals + 1)


@pytest.mark.settings(API_KEY_SECRET="k")
@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/embeddings", {}, 401),
        ("POST", "/v1/embeddings", {"Authorization": "Bearer wrong"}, 401),
        ("POST", "/v1/embeddings", {"Authorization": "bearer k"}, 429),
        ("POST", "/embeddings", {"Authorization": "bearer k"}, 429),
        ("POST", "/nowhere", {}, 404),
        ("PUT", "/v1/embeddings", {}, 405),
        ("GET", "/v1/models", {}, 401),
        ("GET", "/health/live", {}, 200),
    ],
)
def test_a_full_queue_tells_nothing_to_a_client_without_a_key(worker, ask, full, method, path, headers, status):
    assert ask(method, path, BODY, headers)[0] == status


@pytest.mark.settings(API_KEY_SECRET="k")
@pytest.mark.parametrize(
    ("request_line", "headers", "status"),
    [
        (b"POST /v1/embeddings", b"Content-Length: 99999", 401),
        (b"POST /v1/embeddings", b"Transfer-Encoding: chunked", 401),
        (b"POST /v1/embeddings", b"Content-Length: 9\r\nExpect: 100-continue", 401),
        (b"POST /v1/embeddings", b"Content-Length: 9\r\nAuthorization: Bearer wrong", 401),
        (b"POST /v1/embeddings", b"Content-Length: 9\r\nAuthorization: Bearer k", 408),
        (b"POST /nowhere", b"Content-Length: 99999", 404),
        (b"PUT /v1/embeddings", b"Content-Length: 99999", 405),
        (b"GET /v1/models", b"Content-Length: 99999", 401),
        (b"GET /health/live", b"Content-Length: 99999", 200),
    ],
)
def test_no_body_of_a_client_without_a_key_is_waited_for(worker, request_line, headers, status):
    answer = raw(worker, request_line + b" HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n")
    assert int(answer.split()[1]) == status
    assert b"Connection: close" in answer


@pytest.mark.settings(API_KEY_SECRET="k", MAX_BODY_BYTES="2000")
@pytest.mark.parametrize(
    ("key", "size", "code"),
    [
        (b"", 3000, b"invalid_api_key"),
        (b"", 10, b"invalid_api_key"),
        (b"Authorization: Bearer k\r\n", 3000, b"body_too_large"),
        (b"Authorization: Bearer k\r\n", 10, b"invalid_body"),
    ],
)
def test_a_body_that_is_too_large_or_breaks_off_is_told_to_a_client_with_a_key(worker, key, size, code):
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n{"
    answer = raw(worker, head % (key, size), ends=True)
    assert code in answer
    assert b"Connection: close" in answer


def test_a_request_waits_for_a_thread_no_longer_than_its_deadline(worker, ask, model):
    model.route.backend.proceed.clear()
    threads = [threading.Thread(target=ask, args=("POST", "/v1/embeddings", LONG_BODY)) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: worker.requests.pool.n_running == 2)
    status, body, headers = ask("POST", "/v1/embeddings", LONG_BODY, {"x-stainless-read-timeout": "0.1"})
    assert (status, body["error"]["code"], headers["Connection"]) == (504, "deadline_exceeded", "keep-alive")
    assert not worker.requests.pool.waiting
    model.route.backend.proceed.set()
    for thread in threads:
        thread.join(10)


def test_what_comes_behind_a_request_whose_deadline_passed_is_answered(worker, ask, model):
    model.route.backend.proceed.clear()
    threads = [threading.Thread(target=ask, args=("POST", "/v1/embeddings", LONG_BODY)) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: worker.requests.pool.n_running == 2)
    head = "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nx-stainless-read-timeout: 0.1\r\nContent-Length: "
    late = f"{head}{len(LONG_BODY)}\r\n\r\n{LONG_BODY}"
    last = "GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = raw(worker, (late + last).encode())
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [504, 200]
    model.route.backend.proceed.set()
    for thread in threads:
        thread.join(10)


def test_short_requests_need_no_thread(worker, ask, model):
    """Given more short requests than threads, then none waits for a thread, and each keeps to its deadline."""
    model.route.backend.proceed.clear()
    statuses = []
    threads = [
        threading.Thread(target=lambda: statuses.append(ask("POST", "/v1/embeddings", BODY)[0])) for _ in "abcdef"
    ]
    for thread in threads:
        thread.start()
    until(lambda: worker.requests.connections.n_open == len(threads))
    status, body, headers = ask("POST", "/v1/embeddings", BODY, {"x-stainless-read-timeout": "0.1"})
    assert (status, body["error"]["code"], headers["Connection"]) == (504, "deadline_exceeded", "keep-alive")
    assert ask()[0] == 200
    assert not worker.requests.pool.waiting
    model.route.backend.proceed.set()
    for thread in threads:
        thread.join(10)
    assert statuses == [200] * len(threads)


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_client_that_leaves_while_in_work_is_dropped(worker, ask, model, how):
    model.route.backend.proceed.clear()
    client = socket.create_connection(("127.0.0.1", worker.port))
    if how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    sent = BODY.encode()
    client.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent)
    assert model.route.backend.entered.wait(10)
    client.close()
    until(lambda: worker.requests.pool.n_running == 0)
    model.route.backend.proceed.set()
    until(lambda: worker.requests.connections.n_open == 0)
    assert ask("POST", "/v1/embeddings", BODY)[0] == 200


def test_pipelined_pieces_and_chunks_are_answered_in_order(worker):
    chunked = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    request = chunked % (len(BODY), BODY.encode()) + b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" + last
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as client:
        for start in range(0, len(request), 40):
            client.sendall(request[start : start + 40])
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 200, 404]


def test_tls_is_left_to_a_proxy(capfd):
    with pytest.raises(SystemExit, match="1"):
        Worker.check_config(SimpleNamespace(is_ssl=True), None)
    assert capfd.readouterr().err.endswith("leave TLS to a proxy\n")
    Worker.check_config(SimpleNamespace(is_ssl=False, worker_connections=9, threads=1, keepalive=2), None)


@pytest.fixture
def server_stops(monkeypatch):
    stops = flags.Flag()
    monkeypatch.setattr(flags, "SERVER_STOPS", stops)
    return stops


@pytest.mark.parametrize(("reexec_pid", "stops"), [(0, True), (7, False)])
def test_the_master_tells_its_workers_that_the_server_stops_unless_another_goes_on(server_stops, reexec_pid, stops):
    got = []
    arbiter = SimpleNamespace(
        pid=os.getpid(), reexec_pid=reexec_pid, master_pid=0, signal=lambda number, frame: got.append(number)
    )
    before = signal.getsignal(signal.SIGTERM)
    try:
        worker_module.tell_workers_of_sigterm(arbiter)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (got, bool(server_stops)) == ([signal.SIGTERM], stops)


def test_a_server_that_stops_says_so_until_the_drain_is_over(worker, ask, server_stops):
    assert ask("GET", "/health/ready")[0] == 200
    server_stops.set()
    worker.alive = False
    assert ask("GET", "/health/ready")[0] == 503
    status, body, headers = ask("POST", "/v1/embeddings", BODY)
    assert (status, body["error"]["code"], headers["Connection"]) == (503, "not_ready", "close")


def test_a_body_for_which_there_is_no_room_is_refused_before_it_comes(worker, engine, monkeypatch):
    monkeypatch.setattr(engine.runner.admission, "has_room", lambda n_bytes: False)
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nExpect: 100-continue\r\n\r\n"
    assert b"server_overloaded" in raw(worker, head)


def test_a_worker_whose_batch_hangs_answers_and_ends(worker, ask, engine, model, monkeypatch):
    codes = []
    monkeypatch.setattr(worker_module.os, "_exit", codes.append)
    monkeypatch.setattr(worker_module.logging, "shutdown", lambda: None)
    model.route.backend.proceed.clear()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(ask("POST", "/v1/embeddings", BODY)))
    thread.start()
    assert model.route.backend.entered.wait(10)
    engine.runner.inference_timeout_s = 0.01
    thread.join(10)
    assert answers[0][0] == 504
    until(lambda: codes)
    assert codes == [1]
    model.route.backend.proceed.set()


def test_a_panic_of_a_library_is_an_error_and_ends_no_thread(worker, ask, engine, monkeypatch):
    """A library in Rust raises such an exception if the system refuses it a thread."""

    class PanicError(BaseException):
        pass

    def panic(*_, **__):
        raise PanicError

    monkeypatch.setattr(engine, "embed", panic)
    for _ in range(10):
        assert ask("POST", "/v1/embeddings", BODY)[0] == 500
    monkeypatch.undo()
    assert ask("POST", "/v1/embeddings", BODY)[0] == 200
