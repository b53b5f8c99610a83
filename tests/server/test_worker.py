"""The worker with clients that are slow, do not read, or leave, and the worker's end. The model is a fake."""

import contextlib
import errno
import http.client
import json
import re
import signal
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.server.conftest import ROOT, until

THREADS = 4
# Each file causes a fault as long as it exists.
APP = """
import logging
from pathlib import Path
import time
from embedding_api.app import create_app
from embedding_api.engine.scheduling.admission import Admission
from embedding_api.engine.scheduling.board import Seat
from embedding_api.settings import load_settings
from tests.fakes import FakeBackend, fake_engine, fake_model

class Backend(FakeBackend):
    def compute(self, inputs, n_prompt_tokens):
        while Path("hold").exists():
            time.sleep(0.01)
        return super().compute(inputs, n_prompt_tokens)

logger = logging.getLogger("embedding_api.test")
settings = load_settings()
engine = fake_engine(fake_model(backend=Backend()), inference_timeout_s=settings.inference_timeout_s)
Admission.is_full = lambda self: Path("full").exists()
Admission.has_room = lambda self, n_bytes: not Path("no-room").exists()
Seat.publish_arriving = lambda self, n_tokens, n_bytes: logger.info("arriving %d %d", n_tokens, n_bytes)
close = engine.close

def say_and_close():
    logger.info("closing")
    close()

engine.close = say_and_close
app = create_app(settings, engine)
inner = app.wsgi_app

def wsgi_app(environ, start_response):
    environ["embedding_api.request"].caller.when_left(lambda: logger.info("left"))
    return inner(environ, start_response)

app.wsgi_app = wsgi_app
"""


class Client:
    """A connection that sends and receives bytes."""

    def __init__(self, server, *, receive_buffer=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", server.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def send(self, data: bytes):
        self.socket.sendall(data)
        return self

    def answer(self):
        """Read the next answer; return status, JSON and headers."""
        line = self.file.readline()
        assert line, "the connection was closed without an answer"
        headers = http.client.parse_headers(self.file)
        body = self.file.read(int(headers.get("Content-Length", 0)))
        return int(line.split()[1]), json.loads(body or b"null"), headers

    def has_closed(self) -> bool:
        return self.file.read() == b""

    def end(self):
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self):
        self.file.close()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def post(texts="a cat", *, headers=b"", **fields) -> bytes:
    body = json.dumps({"model": "org/fake", "input": texts, **fields}).encode()
    return b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s" % (headers, len(body), body)


def post_long(text="cat") -> bytes:
    """Return a request that needs a thread, since its body is too long for the loop."""
    return post(text, user="x" * 1024)


def get(path="/health/live", headers=b"") -> bytes:
    return b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (path.encode(), headers)


def assert_refused(answer, status, code, type_="invalid_request_error"):
    got, body, headers = answer
    assert (got, body["error"]["code"], body["error"]["type"]) == (status, code, type_)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert headers["Content-Type"] == "application/json"
    assert re.fullmatch("[0-9a-f]{32}", headers["X-Request-ID"])


class Faulty:
    """A server in a folder. Files in that folder cause its faults."""

    def __init__(self, launch, folder: Path, *arguments, **settings):
        self.folder = folder
        (folder / "wsgi.py").write_text(APP)
        conf = ("-c", str(ROOT / "gunicorn.conf.py"), "--keep-alive", "3", *arguments)
        defaults = {"WORKERS": "1", "THREADS": str(THREADS), "CLIENT_TIMEOUT_S": "2", "PYTHONPATH": str(ROOT)}
        self.server = launch(*conf, cwd=folder, **{**defaults, **settings})

    def __getattr__(self, name):
        return getattr(self.server, name)

    @contextlib.contextmanager
    def fault(self, name):
        (self.folder / name).touch()
        try:
            yield
        finally:
            (self.folder / name).unlink(missing_ok=True)

    def ask(self, *requests: bytes):
        """Send requests on one new connection; return the answers."""
        with Client(self) as client:
            client.send(b"".join(requests))
            return [client.answer() for _ in requests]

    def lines(self, word) -> list[str]:
        """Return the log lines of the fakes, each from this word on."""
        return re.findall(rf"\] ({word}.*)$", self.log, re.MULTILINE)

    @contextlib.contextmanager
    def all_threads_taken(self, n_waiting=2):
        """Send requests until each thread has one and `n_waiting` more wait; yield the futures of their answers."""
        waiting = f"arriving {n_waiting * len(post_long('cat 0').partition(b'{')[2] + b'{') // 4} "
        n_said = len(self.lines(waiting))
        with self.fault("hold"), ThreadPoolExecutor(THREADS + n_waiting) as clients:
            running = [clients.submit(self.ask, post_long(f"cat {n}")) for n in range(THREADS + n_waiting)]
            until(lambda: len(self.lines(waiting)) > n_said, what="a line for threads")
            yield running
            (self.folder / "hold").unlink()
            for request in running:
                ((status, *_),) = request.result(30)
                assert status == 200


@pytest.fixture(scope="module")
def faulty(_launch, tmp_path_factory):
    return Faulty(_launch, tmp_path_factory.mktemp("faulty"), MAX_BODY_BYTES="1000000")


# Slow clients


@pytest.mark.fault("slow clients")
def test_clients_that_never_finish_get_408_and_hold_nobody_up(faulty, observed):
    """Given more half-sent heads and bodies than threads, when other clients send requests, then they are answered."""
    heads = [get(headers=b"X-Slow: ")[:-2] for _ in range(THREADS + 1)]
    bodies = [post(headers=b"X: y\r\n")[:-40] for _ in range(THREADS + 1)]
    chunks = [b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n"]
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Client(faulty)).send(half) for half in (*heads, *bodies, *chunks)]
        answers = {}
        # The slow clients have no answer yet. An answer would free a thread, if they occupied one.
        n_served = n_rounds = 0
        started = time.monotonic()

        def all_are_answered():
            nonlocal n_served, n_rounds
            for client in slow:
                client.socket.setblocking(False)
                with contextlib.suppress(BlockingIOError, ConnectionError):
                    if client not in answers and client.socket.recv(1, socket.MSG_PEEK):
                        client.socket.settimeout(30)
                        answers[client] = client.answer()
                    elif n_rounds < 20:
                        client.socket.send(b"a")
            assert faulty.ask(post(), get())[0][0] == 200
            n_rounds += 1
            n_served += not answers
            return len(answers) == len(slow)

        until(all_are_answered, what="408 for all")
        assert time.monotonic() - started >= 2
        assert n_served >= 5
        for client, answer in answers.items():
            assert_refused(answer, 408, "request_timeout")
            assert "2 s" in answer[1]["error"]["message"]
            assert answer[2]["Connection"] == "close"
            client.socket.settimeout(30)
            assert client.has_closed()
    observed(
        f"{len(slow)} half-sent requests, {THREADS} threads: 408 for each after 2 s, {n_served} others served before"
    )


def test_a_connection_that_never_says_anything_is_closed_without_a_word(faulty):
    with Client(faulty) as client:
        assert client.has_closed()


def test_a_connection_that_is_kept_alive_is_closed_without_a_word_in_the_end(faulty):
    with Client(faulty) as client:
        assert client.send(post()).answer()[0] == 200
        assert client.has_closed()


def test_clients_that_do_not_read_are_let_go_and_hold_nobody_up_for_longer(faulty):
    """Given as many clients as threads that do not read, then requests that need no thread are answered at once."""
    (worker,) = faulty.workers
    with contextlib.ExitStack() as stack:
        rude = [stack.enter_context(Client(faulty, receive_buffer=4096)) for _ in range(THREADS)]
        for client in rude:
            client.send(post(["a"] * 2048) * 2)
        ports = {client.socket.getsockname()[1] for client in rude}

        def are_gone():
            assert faulty.ask(get())[0][0] == 200
            return not ports & {c.raddr.port for c in worker.net_connections("tcp") if c.raddr}

        assert faulty.ask(post())[0][0] == 200
        until(are_gone, what="an end with those who do not read")


# Requests that wait for a thread, and requests that need none


@pytest.mark.fault("overload")
def test_health_is_answered_while_every_thread_waits(faulty, observed):
    with faulty.all_threads_taken():
        for path in ("/health/live", "/health/ready", "/v1/models", "/nope"):
            ((status, *_),) = faulty.ask(get(path))
            assert status == (404 if path == "/nope" else 200)
    until(lambda: faulty.lines("arriving")[-1] == "arriving 0 0", what="nothing held")
    observed("liveness is answered while every thread waits")


def test_when_the_queue_is_full_work_is_refused_at_once_and_the_connection_kept(faulty):
    with faulty.all_threads_taken(), faulty.fault("full"):
        refused, alive, again = faulty.ask(post(), get(), post())
        for answer in (refused, again):
            assert_refused(answer, 429, "server_overloaded", "rate_limit_error")
            assert int(answer[2]["Retry-After"]) >= 1
            assert answer[2]["Connection"] == "keep-alive"
        assert alive[0] == 200


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 999\r\n\r\n",
        b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    ],
    ids=["length", "expectation", "chunks"],
)
def test_when_there_is_no_room_for_a_body_it_is_refused_before_it_comes(faulty, head):
    with faulty.fault("no-room"), Client(faulty) as client:
        answer = client.send(head).answer()
        assert_refused(answer, 429, "server_overloaded", "rate_limit_error")
        assert answer[2]["Connection"] == "close"
        assert client.has_closed()
        assert faulty.ask(post())[0][0] == 200


# Framing


def test_pipelined_requests_are_answered_in_their_order(faulty):
    texts = ["a", "cat", "kitten", "tax law", "cat kitten"]
    alone = [faulty.ask(post(text))[0][1] for text in texts]
    answers = faulty.ask(*(request for text in texts for request in (post(text), get("/"))))
    assert [answer[1] for answer in answers[::2]] == alone
    assert {answer[1]["status"] for answer in answers[1::2]} == {"healthy"}


def test_requests_in_pieces_of_one_byte_are_read(faulty):
    chunked = post(headers=b"Transfer-Encoding: chunked\r\n").replace(b"Content-Length", b"X-Length")
    head, _, body = chunked.partition(b"\r\n\r\n")
    chunked = head + b"\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (1, body[n : n + 1]) for n in range(len(body)))
    with Client(faulty) as client:
        for request in (post(), chunked + b"0\r\n\r\n", get()):
            for byte in request:
                client.send(bytes([byte]))
            assert client.answer()[0] == 200


def test_expect_100_is_answered_once_and_before_the_body(faulty):
    head, _, body = post(headers=b"Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    with Client(faulty) as client:
        for _ in range(2):
            client.send(head + b"\r\n\r\n")
            assert client.file.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert client.file.readline() == b"\r\n"
            assert client.send(body).answer()[0] == 200


def test_expect_100_is_not_answered_where_the_body_is_too_large(faulty):
    with Client(faulty) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n")
        assert client.answer()[0] == 405
        assert client.has_closed()


def test_a_refusal_reaches_a_client_that_is_still_sending(faulty):
    """Given a client that sends a body of twice the limit before it reads, then it gets 413, even if it closes late."""
    body = b" " * 1_900_000
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(faulty)) for _ in range(6)]
        for client in clients:
            client.send(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            answer = client.answer()
            assert_refused(answer, 413, "body_too_large")
            assert answer[2]["Connection"] == "close"
            # A connection that is closing does not delay other requests.
            assert faulty.ask(get())[0][0] == 200


LONG = b"a" * 10_000


@pytest.mark.fault("refused by gunicorn")
@pytest.mark.parametrize(
    ("request_", "status", "code", "said"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization Bearer the-key\r\n\r\n", 400, "invalid_request", "header"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: the-key\x00\r\n\r\n", 400, "invalid_request", "control characters"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: the-key\r\n\r\n", 400, "invalid_request", "one Host"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: y\r\n the-key\r\n\r\n", 400, "invalid_request", "one line"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nthe key: y\r\n\r\n", 400, "invalid_request", "name of a header"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: the-key\r\n\r\n", 400, "invalid_request", "Content-Length"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: the-key\r\n\r\n", 400, "invalid_request", "chunked"),
        (b"get / HTTP/1.1\r\nHost: the-key\r\n\r\n", 400, "invalid_request", "upper-case"),
        (b"GET / HTTP/9.1\r\nHost: the-key\r\n\r\n", 400, "invalid_request", "HTTP/1.1"),
        (b"the-key\r\n\r\n", 400, "invalid_request", "request line"),
        (b"GET / HTTP/1.1\nHost: the-key\n\n", 400, "invalid_request", "CRLF"),
        (b"\x16\x03\x01\x02\x00\x01the-key", 400, "invalid_request", "plain HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "invalid_request", "request line"),
        (b"GET /" + LONG, 414, "uri_too_long", "4094"),
        (b"GET /" + LONG + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "uri_too_long", "4094"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + LONG + b"\r\n\r\n", 431, "headers_too_large", "8190"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431, "headers_too_large", "100"),
        (b"GET / HTTP/1.1\r\n" + (b"X: " + b"y" * 1000 + b"\r\n") * 70, 431, "headers_too_large", "64 KiB"),
        (b"POST / HTTP/1.1\r\nExpect: the-key\r\nContent-Length: 9\r\n\r\n", 417, "expectation_failed", "100-continue"),
    ],
)
def test_what_gunicorn_refuses_is_told_in_the_envelope(faulty, request_, status, code, said, observed):
    """The answer comes at once, even if the client sends no more. It has the cure, and no part of the request."""
    with Client(faulty) as client:
        answer = client.send(request_).answer()
        assert_refused(answer, status, code)
        message = answer[1]["error"]["message"]
        assert said in message
        assert "the-key" not in message
        assert answer[2]["Connection"] == "close"
        assert client.has_closed()
    assert f"request_id={answer[2]['X-Request-ID']}" in faulty.log
    assert "the-key" not in faulty.log
    observed(f"{status} {code}")


def test_a_fault_in_the_application_is_500_in_the_envelope(launch, tmp_path):
    """Given an application that returns an invalid header, which Flask does not catch, then the answer is 500."""
    broken = "app.wsgi_app = lambda environ, start_response: start_response('200 OK', [('X', 'a\\nb')]) or [b'']\n"
    server = Faulty.__new__(Faulty)
    server.folder = tmp_path
    (tmp_path / "wsgi.py").write_text(APP + broken)
    conf = ("-c", str(ROOT / "gunicorn.conf.py"))
    server.server = launch(*conf, wait=False, cwd=tmp_path, PYTHONPATH=str(ROOT), WORKERS="1")
    until(lambda: "Booting worker" in server.log, what="a worker")
    (answer,) = server.ask(get())
    assert_refused(answer, 500, "internal_error", "server_error")
    assert "Traceback" in server.log


# Clients that leave


def connect_and_ask(stack, server):
    """Return a client whose request the worker has received."""
    (worker,) = server.workers
    client = stack.enter_context(Client(server)).send(post())
    port = client.socket.getsockname()[1]
    until(lambda: port in {c.raddr.port for c in worker.net_connections("tcp") if c.raddr}, what="the connection")
    assert server.ask(get())[0][0] == 200
    return client


def share_of_core(worker) -> float:
    """Return the share of a core that a worker uses in one idle second; near 1 if it is in a busy loop."""
    started, spent_s = time.monotonic(), sum(worker.cpu_times()[:2])
    until(lambda: time.monotonic() > started + 1, what="a second")
    return (sum(worker.cpu_times()[:2]) - spent_s) / (time.monotonic() - started)


@pytest.mark.fault("client gone")
@pytest.mark.parametrize("how", ["reset", "close", "shutdown"])
def test_it_is_noticed_that_a_client_left_while_its_request_is_in_work(faulty, how, observed):
    n_left = len(faulty.lines("left"))
    (worker,) = faulty.workers
    with faulty.fault("hold"), contextlib.ExitStack() as stack:
        client = connect_and_ask(stack, faulty)
        {"reset": client.reset, "close": client.__exit__, "shutdown": client.end}[how]()
        until(lambda: len(faulty.lines("left")) > n_left, what="the client's leave")
        assert share_of_core(worker) < 0.5, "it is told of the same event again and again"
    observed(f"{how}: noticed while its request is in progress")


def test_it_is_noticed_that_a_client_left_while_its_request_is_in_line(faulty):
    n_left = len(faulty.lines("left"))
    with faulty.all_threads_taken(), contextlib.ExitStack() as stack:
        connect_and_ask(stack, faulty).reset()
        assert [answer[0] for answer in faulty.ask(get(), get())] == [200, 200]
    until(lambda: len(faulty.lines("left")) > n_left, what="the client's leave")


def test_clients_that_reset_while_in_work_cost_no_place(faulty):
    """Given ten times as many such clients as threads, when other clients send requests, then they are answered."""
    for n in range(10 * THREADS):
        with faulty.fault("hold"):
            client = Client(faulty).send(post(f"cat {n}"))
            n_said = len(faulty.lines("left"))
            client.reset()
            until(lambda n_said=n_said: len(faulty.lines("left")) > n_said, what="word of it")
    with ThreadPoolExecutor(2 * THREADS) as clients:
        assert {answer[0][0] for answer in clients.map(faulty.ask, [post()] * 2 * THREADS)} == {200}


def test_a_client_that_closed_its_sending_side_gets_its_answer(faulty):
    with Client(faulty) as client:
        client.send(post() + get()).end()
        assert [client.answer()[0] for _ in range(2)] == [200, 200]
        assert client.has_closed()


def test_what_is_sent_ahead_of_an_answer_waits_in_the_kernel_beyond_some_bytes(faulty):
    (worker,) = faulty.workers
    n_said = len(faulty.lines("arriving"))
    with faulty.fault("hold"), Client(faulty) as client:
        client.send(post())
        client.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(100):
                client.socket.send(get() * 10_000)
            pytest.fail("the worker reads on and on")
        assert faulty.ask(get())[0][0] == 200
        held = [int(line.split()[2]) for line in faulty.lines("arriving")[n_said:]]
        assert max(held) < 500_000
        assert share_of_core(worker) < 0.5


# The worker's end


def is_refused(server) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.port)) == errno.ECONNREFUSED


@pytest.mark.fault("sigterm")
def test_a_server_that_stops_says_so_while_it_drains(launch, tmp_path, observed):
    server = Faulty(launch, tmp_path, DRAIN_S="3", GRACEFUL_TIMEOUT_S="20", WORKERS="2")
    with ThreadPoolExecutor(1) as clients, server.fault("hold"), Client(server) as kept:
        assert kept.send(get()).answer()[0] == 200
        running = clients.submit(server.ask, post("cat"))
        until(lambda: len(server.workers) == 2, what="two workers")
        with Client(server) as probe:
            assert probe.send(get("/health/ready")).answer()[0] == 200
        started = time.monotonic()
        server.process.terminate()
        until(lambda: server.ask(get("/health/ready"))[0][0] == 503, deadline_s=3, what="readiness to end")
        for answer in (*server.ask(post()), *server.ask(get("/health/ready")), kept.send(post()).answer()):
            assert_refused(answer, 503, "not_ready", "server_error")
            assert "stopping" in answer[1]["error"]["message"]
            assert answer[2]["Connection"] == "close"
        assert server.ask(get())[0][0] == 200
        until(lambda: is_refused(server), what="the end of listening")
        assert time.monotonic() - started >= 3
        (server.folder / "hold").unlink()
        assert running.result(20)[0][0] == 200
    assert server.process.wait(20) == 0
    assert "Traceback" not in server.log
    assert "SIGKILL" not in server.log
    observed(
        "DRAIN_S=3: readiness, new and kept-alive connections got 503 and `Connection: close`, the running request 200"
    )


def test_a_second_request_that_waits_for_a_thread_is_told_when_the_grace_time_ends(launch, tmp_path):
    """Given a request that hangs, and one behind it, when the grace time ends, then one gets 200 and the other 503."""
    server = Faulty(launch, tmp_path, GRACEFUL_TIMEOUT_S="6", THREADS="1")
    with ThreadPoolExecutor(2) as clients, server.fault("hold"):
        running = [clients.submit(server.ask, post_long()) for _ in range(2)]
        until(lambda: server.lines("arriving [1-9]"), what="one in line")
        server.process.terminate()
        until(lambda: server.lines("closing"), what="the end of the grace time")
        (server.folder / "hold").unlink()
        answers = sorted((request.result(20)[0] for request in running), key=lambda answer: answer[0])
    assert answers[0][0] == 200
    assert_refused(answers[1], 503, "not_ready", "server_error")
    assert server.process.wait(20) == 0


@pytest.mark.fault("sighup")
@pytest.mark.parametrize("renew", [signal.SIGHUP, signal.SIGTTOU], ids=["SIGHUP", "SIGTTOU"])
def test_a_renewal_loses_nothing_and_refuses_nothing(launch, tmp_path, renew, observed):
    """A renewal does not drain, although the server drains when it stops, because new workers replace the old ones."""
    server = Faulty(launch, tmp_path, WORKERS="2", DRAIN_S="5")
    old = {worker.pid for worker in until(lambda: len(server.workers) == 2 and server.workers, what="two workers")}
    is_over = threading.Event()

    def keep_asking(is_kept):
        n_answers = 0
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        while not is_over.is_set():
            connection.request("POST", "/v1/embeddings", post().partition(b"\r\n\r\n")[2])
            response = connection.getresponse()
            assert response.status == 200, response.read()
            response.read()
            n_answers += 1
            if not is_kept:
                connection.close()
        connection.close()
        return n_answers

    with ThreadPoolExecutor(6) as clients:
        asking = [clients.submit(keep_asking, is_kept) for is_kept in [True, False] * 3]
        try:
            server.process.send_signal(renew)
            n_left = 0 if renew == signal.SIGHUP else 1
            until(lambda: len(old & {worker.pid for worker in server.workers}) == n_left, what="the renewal")
        finally:
            is_over.set()
        assert all(future.result() for future in asking)
    observed(f"{renew.name} under load, kept-alive and new connections: all answered 200")


@pytest.mark.parametrize(
    ("told", "drain_s"),
    [(signal.SIGTERM, "0"), (signal.SIGINT, "25"), (signal.SIGQUIT, "25")],
    ids=lambda value: str(value),
)
def test_without_a_drain_it_stops_at_once(launch, tmp_path, told, drain_s):
    server = Faulty(launch, tmp_path, DRAIN_S=drain_s)
    with Client(server) as kept:
        assert kept.send(get()).answer()[0] == 200
        server.process.send_signal(told)
        until(lambda: server.process.poll() is not None, deadline_s=15, what="the end")
    assert server.process.returncode == 0
    assert "Traceback" not in server.log


@pytest.mark.fault("hang")
def test_a_worker_whose_engine_hangs_is_replaced(launch, tmp_path, observed):
    server = Faulty(launch, tmp_path, INFERENCE_TIMEOUT_S="1")
    (first,) = server.workers
    with ThreadPoolExecutor(1) as clients, Client(server) as kept:
        assert kept.send(get("/health/ready")).answer()[0] == 200
        with server.fault("hold"):
            stuck = clients.submit(server.ask, post())
            until(lambda: "CRITICAL" in server.log, what="the watchdog")
            assert_refused(kept.send(get("/health/ready")).answer(), 503, "not_ready", "server_error")
            assert kept.has_closed()
            until(lambda: not first.is_running(), what="its end")
        assert stuck.result(30)[0][0] == 504
    until(lambda: server.workers and first.pid not in {worker.pid for worker in server.workers}, what="a new worker")
    assert server.ask(post())[0][0] == 200
    assert server.log.count("CRITICAL") == 1
    assert f"(pid:{first.pid}) exited with code 1" in server.log
    observed("504, and 503 from readiness on a kept-alive connection")


def test_tls_is_refused_in_one_line(launch, tmp_path):
    (tmp_path / "wsgi.py").write_text(APP)
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).touch()
    conf = ("-c", str(ROOT / "gunicorn.conf.py"), "--certfile", "cert.pem", "--keyfile", "key.pem")
    server = launch(*conf, wait=False, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert server.process.wait(60) == 1
    assert server.log.splitlines()[-1].startswith("memementor-embedding-service cannot start: certfile")
    assert "Traceback" not in server.log


def test_a_worker_that_can_open_no_more_files_waits_until_it_can(faulty):
    (worker,) = faulty.workers
    if not hasattr(worker, "rlimit"):
        pytest.skip("only Linux lets this be set from outside")
    before = worker.rlimit(psutil.RLIMIT_NOFILE)
    n_files = max(int(path.name) for path in Path(f"/proc/{worker.pid}/fd").iterdir())
    try:
        worker.rlimit(psutil.RLIMIT_NOFILE, (n_files + 4, before[1]))
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(Client(faulty)) for _ in range(20)]
            until(lambda: "no connection can be accepted" in faulty.log, what="the line")
            for client in clients:
                client.send(get(headers=b"Connection: close\r\n"))
            for client in clients:
                assert client.answer()[0] == 200
                client.__exit__()
    finally:
        worker.rlimit(psutil.RLIMIT_NOFILE, before)
    assert [worker.pid for worker in faulty.workers] == [worker.pid]
