"""HTTP as bytes: chunks, incomplete bodies, and connections that carry several requests."""

import http.client
import json
import socket

import pytest

from tests.server.conftest import MINILM, until

BODY = json.dumps({"model": MINILM, "input": "a cat"})


def raw(server, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def chunked(*chunks: bytes) -> bytes:
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)


def test_a_chunked_body_is_read(server):
    answer = raw(server, chunked(BODY[:10].encode(), BODY[10:].encode(), b""))
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.fault("refused by gunicorn")
@pytest.mark.parametrize("body", [b"zz\r\n{}\r\n0\r\n\r\n", b"5\r\n{}", b"ffffffffffffffffffff\r\n{}"])
def test_a_bad_chunk_is_400_in_the_envelope(server, body, observed):
    head, _, answer = raw(server, chunked() + body).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(answer)["error"]["code"] == "invalid_body"
    observed("bad chunks: 400 in the envelope")


@pytest.mark.fault("malformed")
def test_a_body_that_breaks_off_is_400(server, observed):
    request = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    assert b'"invalid_body"' in raw(server, request)
    observed("a body that breaks off: 400 in the envelope")


def test_expect_100_continue_is_answered(server):
    body = BODY.encode()
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\n"
    answer = raw(server, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")


@pytest.mark.fault("malformed")
def test_a_connection_is_good_after_a_refusal(launch, observed):
    """Given a refusal that leaves its body unread, when the connection is used again, then it gets the right answer."""
    server = launch(API_KEY_SECRET="k", MAX_BODY_BYTES="100000")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    good, bad = {"Authorization": "Bearer k"}, {"Authorization": "Bearer wrong"}
    large = json.dumps({"model": MINILM, "input": "x" * 150_000})
    for headers, body, status in [
        (bad, large, 401),
        (good, BODY, 200),
        (good, large, 413),
        (good, BODY, 200),
        (good, "{", 400),
        (good, BODY, 200),
    ]:
        connection.request("POST", "/v1/embeddings", body, headers)
        response = connection.getresponse()
        assert response.status == status
        json.loads(response.read())
    connection.close()
    observed("after 401, 413 and 400 the same connection gives 200")


def test_a_chunked_body_over_the_limit_is_413(launch):
    server = launch(WORKERS="1", MAX_BODY_BYTES="2000")
    document = json.dumps({"model": MINILM, "input": "a", "user": "u" * 1000}).encode()
    for rest in (b" " * 3000, b" " * (2000 - len(document)) + b"more"):
        head, _, answer = raw(server, chunked(document, rest, b"")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413")
        assert json.loads(answer)["error"]["code"] == "body_too_large"
    assert raw(server, chunked(document, b" " * (2000 - len(document)), b"")).startswith(b"HTTP/1.1 200")


def test_what_is_malformed_is_not_quoted_in_the_log(launch):
    server = launch(WORKERS="1", LOG_LEVEL="DEBUG")
    raw(server, b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization Bearer the-key\r\n\r\n")
    raw(
        server,
        b'POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}{"input": "a confession"}\r\n\r\n',
    )
    raw(server, chunked() + b"a confession\r\n")
    until(lambda: server.log.count("malformed request refused") == 2, what="the line")
    for secret in ("the-key", "confession"):
        assert secret not in server.log


def test_a_chunked_body_that_goes_on_over_the_limit_is_413(launch):
    server = launch(WORKERS="1", MAX_BODY_BYTES="100000")
    # The server reads and discards a limited number of bytes after a refusal, and then resets the connection. This body
    # stays below that limit.
    head, _, answer = raw(server, chunked(*[b" " * 50_000] * 4)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")
    assert json.loads(answer)["error"]["code"] == "body_too_large"


def test_a_connection_is_good_after_a_large_body_was_refused_unread(launch):
    server = launch(API_KEY_SECRET="k")
    large = json.dumps({"model": MINILM, "input": "x" * 1_000_000})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.connect()
    port = connection.sock.getsockname()
    for method, status in [("PUT", 405), ("POST", 200)]:
        connection.request(method, "/v1/embeddings", large, {"Authorization": "Bearer k"})
        response = connection.getresponse()
        response.read()
        assert response.status == status
        assert connection.sock.getsockname() == port
    connection.close()


def test_a_request_has_one_answer_though_its_body_is_found_bad_behind_it(server):
    request = b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0;\x01=\r\n\r\n"
    assert raw(server, request).count(b"HTTP/1.1 ") == 1
