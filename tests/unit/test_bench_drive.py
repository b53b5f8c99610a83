"""The bench's driver against a server whose behaviour is known."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bench.connection import connect
from bench.drive import Background, drive, post


class Echo(BaseHTTPRequestHandler):
    """Answers `{"n": 3}` with 3001 bytes. `waits` delays, `closes` ends the connection, `breaks` cuts the body off."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.n_asked[self.client_address] = self.server.n_asked.get(self.client_address, 0) + 1
        time.sleep(asked.get("waits", 0))
        body = str(asked["n"]).encode() + b"x" * 1000 * asked["n"]
        self.send_response(asked.get("status", 200))
        self.send_header("content-length", str(len(body) + asked.get("breaks", 0)))
        if asked.get("closes") or asked.get("breaks"):
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        server.n_asked = {}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def asking(n: int, **more) -> bytes:
    return post("/any", json.dumps({"n": n, **more}).encode())


def test_every_request_is_answered_once_over_connections_that_stay(server):
    done = drive(server.server_address, [asking(n) for n in range(40)], 4)

    assert sorted(response.number for response in done.responses) == list(range(40))
    for number, latency_s, status, body in done.responses:
        assert status == 200
        assert body == str(number).encode() + b"x" * 1000 * number
        assert 0 < latency_s <= done.elapsed_s
    assert len(server.n_asked) == 4


def test_large_requests_and_answers_arrive_whole(server):
    (response,) = drive(server.server_address, [asking(5000, padding="x" * 8_000_000)], 1).responses

    assert len(response.body) == 5_000_004


def test_a_server_that_closes_after_each_answer_is_connected_to_again(server):
    done = drive(server.server_address, [asking(1, closes=True)] * 5, 2)

    assert len(done.responses) == 5
    assert len(server.n_asked) == 5


def test_an_answer_that_breaks_off_is_an_error(server):
    with pytest.raises(RuntimeError, match="closed a connection in mid-response"):
        drive(server.server_address, [asking(1, breaks=10)], 1)


def test_what_was_refused_is_told_not_hidden(server):
    (response,) = drive(server.server_address, [asking(1, status=503)], 1).responses

    assert response.status == 503


def test_no_request_begins_after_the_limit(server):
    done = drive(server.server_address, [asking(1, waits=0.05)] * 1000, 1, limit_s=0.2)

    assert 1 <= len(done.responses) <= 5


def test_the_background_goes_on_until_all_that_is_measured_is_answered(server):
    background = Background([asking(7), asking(8)], n_connections=2, lead_s=0.05)
    done = drive(server.server_address, [asking(1, waits=0.05)] * 4, 1, background=background)

    assert len(done.responses) == 4
    assert done.n_background > 4


def test_open_connections_are_used_and_closed(server):
    opened = [connect(server.server_address) for _ in range(3)]
    own = {each.getsockname() for each in opened}
    done = drive(server.server_address, [asking(n) for n in range(9)], 3, connected=opened)

    assert len(done.responses) == 9
    assert set(server.n_asked) == own
    assert all(each.fileno() == -1 for each in opened)


def test_nobody_there_is_an_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="refused"):
            drive(free.getsockname(), [asking(1)], 1)
