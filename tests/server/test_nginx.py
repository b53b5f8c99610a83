"""deploy/nginx/nginx.conf in the real nginx: what it refuses, what it forwards, and what it repeats."""

import contextlib
import http.client
import http.server
import json
import operator
import random
import re
import runpy
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gunicorn.config
import numpy as np
import psutil
import pytest

from embedding_api.settings import load_settings
from tests.server import wire
from tests.server.conftest import MINILM, ROOT, free_port, request, until

CONFIGURATION = (ROOT / "deploy" / "nginx" / "nginx.conf").read_text()
BODY = json.dumps({"model": MINILM, "input": "a cat"})
POST = wire.post(BODY.encode())

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")


def directive(name: str) -> str:
    """Return the value of a directive, which the file must have exactly once."""
    (value,) = re.findall(rf"^ *{name} (.*);$", CONFIGURATION, re.MULTILINE)
    return value


def seconds(name: str) -> int:
    return int(directive(name).removesuffix("s"))


class Nginx:
    """nginx with the configuration in deploy/, except for addresses, paths, and what a test replaces."""

    def __init__(self, folder: Path, upstream_port: int, replaced: dict[str, str]) -> None:
        self.port = free_port()
        self.folder = folder
        temporary = "".join(
            f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = CONFIGURATION
        for old, new in {
            "http {": f"http {{ {temporary}",
            "listen 80;": f"listen 127.0.0.1:{self.port};",
            "127.0.0.1:8000": f"127.0.0.1:{upstream_port}",
            "/run/nginx.pid": f"{folder}/pid",
            "/var/log/nginx": str(folder),
            **replaced,
        }.items():
            assert old in text
            text = text.replace(old, new)
        (folder / "nginx.conf").write_text(text)
        with (folder / "error.log").open("wb") as errors:
            self.process = subprocess.Popen(
                ["nginx", "-p", folder, "-c", folder / "nginx.conf", "-g", "daemon off;"], stderr=errors
            )

    def listens(self) -> bool:
        assert self.process.poll() is None, self.log
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    @property
    def log(self) -> str:
        return "".join(file.read_text() for file in self.folder.glob("*.log"))

    def request(self, *arguments, **options):
        """See `request`."""
        return request(self.port, *arguments, **options)

    def connections_to(self, port: int) -> set[int]:
        """Return the local ports of nginx's open connections to a port."""
        (worker,) = psutil.Process(self.process.pid).children()
        return {
            connection.laddr.port
            for connection in worker.net_connections("tcp")
            if connection.status == psutil.CONN_ESTABLISHED and connection.raddr.port == port
        }

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def start_nginx():
    """Return a function that starts nginx in front of a port. nginx stops after the tests."""
    with contextlib.ExitStack() as stack:

        def start(upstream_port, replaced=()):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nginx-")))
            # If root starts nginx, its worker process runs as the user nobody, who must be able to read these files.
            folder.chmod(0o755)
            nginx = Nginx(folder, upstream_port, dict(replaced))
            stack.callback(nginx.stop)
            until(nginx.listens, what="nginx")
            return nginx

        yield start


@pytest.fixture(scope="module")
def nginx(server, start_nginx):
    """nginx in front of the server with default settings."""
    return start_nginx(server.port)


@pytest.fixture
def silent():
    """An upstream that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        yield listener


@contextlib.contextmanager
def upstream(answer):
    """Start an upstream that calls `answer` for each request; yield its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        do_POST = answer  # noqa: N815 - http.server demands this name

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=[0.02])
        thread.start()
        try:
            yield listener.server_port
        finally:
            listener.shutdown()
            thread.join()


def ask(port: int, request: bytes) -> wire.Answer:
    with wire.Connection(port) as connection:
        return connection.ask(request)


def assert_refused(answer: wire.Answer, status: int, code: str) -> None:
    """Assert that an answer has the error body of the API, whether nginx or the service refused the request."""
    error = wire.error(answer)
    assert (answer.status, error["code"], error["param"]) == (status, code, None)
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    assert re.fullmatch(r"\d+" if status in {502, 503} else "", answer.headers.get("retry-after", ""))


def test_its_limits_are_those_of_the_service():
    settings = load_settings()
    assert int(directive("client_max_body_size")) == settings.max_body_bytes
    assert f"the body is larger than {settings.max_body_bytes} bytes" in CONFIGURATION
    # nginx has one limit for both. It refuses nothing that Gunicorn accepts, and forwards little that Gunicorn refuses.
    n_buffers, buffer_bytes = map(int, directive("large_client_header_buffers").split())
    takes = gunicorn.config.Config()
    largest_bytes = max(takes.limit_request_line, takes.limit_request_field_size)
    assert largest_bytes <= buffer_bytes < 1.1 * largest_bytes
    assert f"the request line is longer than {buffer_bytes} bytes" in CONFIGURATION
    limits = f"a header is longer than {buffer_bytes} bytes, or all together than {n_buffers * buffer_bytes};"
    assert limits in CONFIGURATION


def test_its_timeouts_are_just_above_those_of_the_service():
    settings = load_settings()
    for name in ("client_header_timeout", "client_body_timeout", "send_timeout"):
        assert seconds(name) == settings.client_timeout_s
    for name in ("proxy_read_timeout", "proxy_send_timeout"):
        assert settings.request_timeout_s < seconds(name) <= settings.request_timeout_s + 10
    assert seconds("proxy_next_upstream_timeout") == settings.request_timeout_s
    assert 1 <= seconds("proxy_connect_timeout") <= 2


def test_it_lets_go_of_idle_connections_before_gunicorn_does(monkeypatch):
    """nginx also keeps no more idle connections than one Gunicorn worker can hold while all of its threads work."""
    monkeypatch.setenv("PORT", str(free_port()))
    # The configuration would share the counters, which only a process that has counted nothing yet may do.
    monkeypatch.setattr("embedding_api.telemetry.metrics.counters.share", lambda _: None)
    config = runpy.run_path(str(ROOT / "gunicorn.conf.py"))
    assert seconds("keepalive_timeout") < config["keepalive"]
    idle = int(directive("worker_processes")) * int(directive("keepalive"))
    assert idle <= config["worker_connections"] - config["threads"]


def get(target: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"GET %s HTTP/1.1" % target, b"Host: x", *headers]) + b"\r\n\r\n"


REFUSED = {
    "no request line": (b"nonsense\r\n\r\n", 400, "invalid_request"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400, "invalid_request"),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400, "invalid_request"),
    "version": (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400, "invalid_request"),
    "TRACE": (b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "invalid_request"),
    "header without colon": (get(b"/", b"no colon"), 400, "invalid_request"),
    "length": (wire.post(b"{}", length=b"many"), 400, "invalid_request"),
    "length and chunks": (wire.post(b"{}", b"Transfer-Encoding: chunked"), 400, "invalid_request"),
    "transfer encoding": (wire.post(b"{}", b"Transfer-Encoding: gzip"), 400, "invalid_request"),
    "bad chunk": (wire.chunked() + b"zz\r\n", 400, "invalid_request"),
    "large body": (wire.post(b"", length=b"33554433"), 413, "body_too_large"),
    "large chunk": (wire.chunked() + b"2000001\r\n{", 413, "body_too_large"),
    "long address": (get(b"/?" + b"a" * 8192), 414, "uri_too_long"),
    "large header": (get(b"/", b"A: " + b"a" * 8192), 431, "headers_too_large"),
    "large headers": (get(b"/", *[b"A: " + b"a" * 8000] * 5), 431, "headers_too_large"),
    "its own page of refusals": (get(b"/refused"), 404, "not_found"),
}


@pytest.mark.parametrize(("sent", "status", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_what_nginx_refuses_is_the_envelope(nginx, sent, status, code):
    assert_refused(ask(nginx.port, sent), status, code)


def test_a_body_that_is_too_large_is_refused_in_the_service_s_words(server, nginx):
    body = b" " * (load_settings().max_body_bytes + 1)
    refused, told = (proxy.request("POST", "/v1/embeddings", body)[:2] for proxy in (nginx, server))
    assert refused == told
    assert refused[0] == 413


def test_what_the_service_refuses_passes_as_it_is(server, nginx):
    for arguments in [("GET", "/nope"), ("GET", "/v1/embeddings"), ("POST", "/v1/embeddings", "{")]:
        assert nginx.request(*arguments)[:2] == server.request(*arguments)[:2]


def test_a_refusal_carries_the_client_s_own_request_id(nginx):
    answer = ask(nginx.port, wire.post(b"", b"X-Request-ID: the.client-1", length=b"33554433"))
    assert (answer.status, answer.headers["x-request-id"]) == (413, "the.client-1")


@pytest.mark.fault("slow clients")
@pytest.mark.parametrize("sent", [get(b"/")[:-2], POST[:-1]], ids=["headers", "body"])
def test_who_is_too_slow_is_cut_off_and_reaches_no_worker(start_nginx, silent, observed, sent):
    timeouts = ("client_header_timeout 30s", "client_body_timeout 30s")
    nginx = start_nginx(silent.getsockname()[1], {text: text.replace("30s", "1s") for text in timeouts})
    with socket.create_connection(("127.0.0.1", nginx.port), timeout=30) as client:
        client.sendall(sent)
        assert client.recv(1) == b""
    with pytest.raises(BlockingIOError):
        silent.accept()
    observed("nginx closed the connection, and opened none to the service")


def test_without_the_service_it_says_when_to_come_again(start_nginx):
    nginx = start_nginx(free_port())
    assert_refused(ask(nginx.port, POST), 502, "not_ready")
    assert_refused(ask(nginx.port, get(b"/health/ready")), 502, "not_ready")


def test_a_fault_of_nginx_itself_is_500_in_the_envelope(start_nginx):
    nginx = start_nginx(free_port())
    # nginx stores a body that is larger than its buffer in this folder.
    (nginx.folder / "client_body").rmdir()
    assert_refused(ask(nginx.port, wire.post(b" " * 2_000_000)), 500, "internal_error")


@pytest.fixture
def impatient(start_nginx, silent):
    """nginx with a timeout of one second, in front of a service that never answers."""
    return start_nginx(silent.getsockname()[1], {"proxy_read_timeout 65s": "proxy_read_timeout 1s"})


def test_a_service_that_does_not_answer_is_504_after_one_try(impatient, silent):
    answer = ask(impatient.port, wire.post(BODY.encode(), b"X-Forwarded-For: 192.0.2.1"))
    assert_refused(answer, 504, "deadline_exceeded")
    connection, _ = silent.accept()
    with connection:
        sent = connection.recv(65536).decode().splitlines()
    assert sent[0] == "POST /v1/embeddings HTTP/1.1"
    assert {
        "Host: x",
        "X-Forwarded-For: 192.0.2.1, 127.0.0.1",
        "X-Forwarded-Proto: http",
        f"X-Request-ID: {answer.headers['x-request-id']}",
    } <= set(sent)
    assert not any(line.lower().startswith("connection:") for line in sent)
    with pytest.raises(BlockingIOError):
        silent.accept()


def test_metrics_are_for_this_machine_alone(impatient, server):
    for target in (
        "/metrics",
        "/metrics/",
        "/metrics%2f",
        "/metrics/?x",
        "//metrics",
        "/x/../metrics",
        "/%6detrics",
        "/metrics?x",
    ):
        client = http.client.HTTPConnection("127.0.0.1", impatient.port, source_address=("127.0.0.2", 0))
        with contextlib.closing(client):
            client.request("GET", target)
            response = client.getresponse()
            assert (response.status, json.load(response)) == server.request("GET", "/nope")[:2]
    assert impatient.request("GET", "/metrics")[0] == 504


def test_a_refusal_of_the_service_is_not_asked_for_twice(start_nginx):
    asked = []

    def refuse(handler):
        asked.append(handler.rfile.read(int(handler.headers["Content-Length"])))
        handler.close_connection = True
        handler.send_response(503)
        handler.send_header("Content-Length", "4")
        handler.send_header("Retry-After", "7")
        handler.end_headers()
        handler.wfile.write(b"null")

    with upstream(refuse) as port:
        status, body, headers = start_nginx(port).request("POST", "/v1/embeddings", BODY)
    assert (status, body, headers.get_all("Retry-After")) == (503, None, ["7"])
    assert asked == [BODY.encode()]


def test_a_request_on_which_connections_are_lost_is_tried_three_times(start_nginx):
    """nginx sends a request again because workers can be killed, and only twice because the request may kill them."""
    asked = []

    def die(handler):
        asked.append(handler.rfile.read(int(handler.headers["Content-Length"])))
        handler.close_connection = True

    with upstream(die) as port:
        assert_refused(ask(start_nginx(port).port, POST), 502, "not_ready")
    assert asked == [BODY.encode()] * 3


@pytest.mark.parametrize(
    ("given", "is_kept"), [("from.the-client_1", True), ("not one", False), ("a" * 129, False), (None, False)]
)
def test_one_request_id_goes_all_the_way(server, nginx, given, is_kept):
    status, _, headers = nginx.request("GET", "/v1/models", headers={"X-Request-ID": given} if given else {})
    assert status == 200
    (request_id,) = headers.get_all("X-Request-ID")
    assert request_id == given if is_kept else re.fullmatch("[0-9a-f]{32}", request_id)
    for process in (server, nginx):
        until(lambda process=process: request_id in process.log, deadline_s=10, what="the line in the log")


def test_its_logs_hold_no_text_and_no_key(nginx):
    body = BODY.replace("a cat", "a confession").encode()
    for sent in [
        wire.post(body, b"Authorization: Bearer the-key", path=b"/v1/embeddings?confession"),
        get(b"/", b"Authorization Bearer the-key"),
        get(b"/", b"Authorization: Bearer the-key" + b"a" * 8192),
    ]:
        answer = ask(nginx.port, sent)
        until(
            lambda answer=answer: answer.headers["x-request-id"] in nginx.log, deadline_s=10, what="the line in the log"
        )
    for secret in ("the-key", "confession"):
        assert secret not in nginx.log


def test_a_hundred_requests_share_one_connection_to_the_service(server, nginx):
    connections = set()
    for _ in range(100):
        assert nginx.request("POST", "/v1/embeddings", BODY)[0] == 200
        connections |= nginx.connections_to(server.port)
    assert len(connections) == 1


@pytest.fixture(scope="module")
def narrow(_launch):
    """A server with four threads. Four of its largest answers exceed the kernel's buffers, but not a worker's limit."""
    server = _launch(WORKERS="1", THREADS="4", MAX_INPUTS="3000")
    yield server
    server.kill()


@pytest.mark.fault("slow clients")
def test_bodies_that_come_slowly_take_no_thread(narrow, start_nginx, observed):
    """Given twice as many half-sent bodies as threads, then others are answered, and these after the rest."""
    nginx = start_nginx(narrow.port)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(wire.Connection(nginx.port)) for _ in range(8)]
        for client in slow:
            client.send(POST[:-10])
        for proxy in (nginx, narrow):
            assert proxy.request("POST", "/v1/embeddings", BODY, timeout=20)[0] == 200
        assert len(nginx.connections_to(narrow.port)) == 1
        assert [client.ask(POST[-10:]).status for client in slow] == [200] * 8
    observed("8 half-sent bodies through nginx before 4 threads reached no worker, and others were served")


@pytest.mark.fault("slow clients")
def test_answers_that_are_read_slowly_take_no_thread(narrow, start_nginx, observed):
    """Given as many clients as threads that do not read a large answer, then other requests are answered."""
    nginx = start_nginx(narrow.port)
    request = wire.post(json.dumps({"model": MINILM, "input": ["a"] * 3000}).encode())
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.socket()) for _ in range(4)]
        for client in slow:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(60)
            client.connect(("127.0.0.1", nginx.port))
            client.sendall(request)
        for client in slow:
            assert client.recv(1, socket.MSG_PEEK) == b"H"
        for proxy in (nginx, narrow):
            assert proxy.request("POST", "/v1/embeddings", BODY, timeout=20)[0] == 200
        response = http.client.HTTPResponse(slow[0])
        response.begin()
        assert len(json.load(response)["data"]) == 3000
    observed("4 answers of megabytes through nginx that nobody read took none of 4 threads")


def embed_until(stop, port, texts, vectors, answered, index):
    """Embed random texts on one connection until `stop` is set, and count the right answers in `answered[index]`."""
    choose = random.Random(index)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection), contextlib.ExitStack() as stack:
        stack.callback(stop.set)
        while not stop.is_set():
            chosen = choose.sample(range(len(texts)), choose.randint(1, 4))
            body = json.dumps({"model": MINILM, "input": [texts[number] for number in chosen]})
            connection.request("POST", "/v1/embeddings", body)
            response = connection.getresponse()
            answer = json.loads(response.read())
            assert response.status == 200, answer
            got = np.array([item["embedding"] for item in answer["data"]])
            np.testing.assert_allclose(got, vectors[chosen], atol=1e-5)
            answered[index] += 1


def is_served_by(worker, server):
    """Return True if this worker answers a new connection, and the service is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.connect()
        ours = connection.sock.getsockname()
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        response.read()
        return response.status == 200 and any(ours == held.raddr for held in worker.net_connections("tcp"))
    return False


def kill_one(server):
    """Kill a worker; return the seconds until the new worker answers."""
    before = {worker.pid for worker in server.workers}
    began = time.monotonic()
    random.choice(server.workers).kill()
    (new,) = until(lambda: [worker for worker in server.workers if worker.pid not in before], what="a new worker")
    until(lambda: is_served_by(new, server), what="an answer of the new worker")
    return time.monotonic() - began


@pytest.mark.fault("kill")
def test_twenty_killed_workers_cost_no_request(launch, start_nginx, observed):
    """Given eight clients, when a worker is killed after each client got an answer, then every answer is right."""
    server = launch(WORKERS="3")
    nginx = start_nginx(server.port)
    texts = [f"text number {n} " + "word " * (n % 40) for n in range(60)]
    vectors = np.array(server.embed(texts))
    stop, answered, ready_s = threading.Event(), [0] * 8, []
    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(embed_until, stop, nginx.port, texts, vectors, answered, index) for index in range(8)]
        try:
            while len(ready_s) < 20 and not stop.is_set():
                before = list(answered)
                until(lambda before=before: stop.is_set() or all(map(operator.lt, before, answered)))
                ready_s.append(kill_one(server))
        finally:
            stop.set()
        for client in clients:
            client.result(60)
    # nginx logs one status for each time that it sent the request.
    n_again = len(re.findall(r"upstream=\d+,", nginx.log))
    assert n_again > 0
    assert np.median(ready_s) < 2
    observed(
        f"20 kills: {sum(answered)} requests of 8 clients through nginx, which sent {n_again} again, all right; "
        f"a new worker answered after {np.median(ready_s):.1f} s (median), {max(ready_s):.1f} s at most"
    )
