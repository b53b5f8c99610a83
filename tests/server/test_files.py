"""A route may receive its body as a file and answer with a file. Files of any size need little memory and no thread.

No route of the service does so yet, so the test adds its own.
"""

import hashlib
import http.client
import json
import socket
import sys
import time

import pytest

from tests.server.conftest import ROOT, until

APP = """
import hashlib
from pathlib import Path

from flask import request, send_file

from embedding_api.app import create_app
from embedding_api.request import FILE_BODIES, REQUEST
from embedding_api.settings import load_settings
from tests.fakes import fake_engine, fake_model

app = create_app(load_settings(), fake_engine(fake_model()))
app.extensions[FILE_BODIES] = {("POST", "/upload"): 400_000_000}

@app.post("/upload")
def upload():
    body = request.environ[REQUEST].body
    return {"sha256": hashlib.file_digest(body, "sha256").hexdigest(), "is_file": body is request.environ["wsgi.input"]}

@app.get("/download")
def download():
    return send_file(Path("large").absolute(), mimetype="application/octet-stream")
"""
PIECE = bytes(range(256)) * 4096
N_PIECES = 300
EMBED = json.dumps({"model": "org/fake", "input": "a cat"})


@pytest.fixture
def server(launch, tmp_path):
    (tmp_path / "wsgi.py").write_text(APP)
    arguments = ("-c", str(ROOT / "gunicorn.conf.py"))
    settings = {"WORKERS": "1", "THREADS": "1", "CLIENT_TIMEOUT_S": "3", "MAX_BODY_BYTES": "100000"}
    return launch(*arguments, cwd=tmp_path, PYTHONPATH=str(ROOT), TMPDIR=str(tmp_path), **settings)


def private_mb(server) -> float:
    (worker,) = server.workers
    return worker.memory_full_info().uss / 1e6


def pass_a_second():
    started = time.monotonic()
    until(lambda: time.monotonic() > started + 1, what="a second")


def answers_others(server) -> bool:
    return server.request("POST", "/v1/embeddings", EMBED)[0] == 200


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_large_upload_goes_to_a_file_while_others_are_answered(server, tmp_path, framing):
    """Given a steady upload that takes longer than CLIENT_TIMEOUT_S, then the server receives all of it."""
    assert answers_others(server)
    before_mb, most_mb = private_mb(server), 0.0
    digest = hashlib.sha256()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", "/upload")
    length = ("Content-Length", str(N_PIECES * len(PIECE))) if framing == "length" else ("Transfer-Encoding", "chunked")
    connection.putheader(*length)
    connection.endheaders()
    for number in range(N_PIECES):
        digest.update(PIECE)
        connection.send(PIECE if framing == "length" else b"%x\r\n%s\r\n" % (len(PIECE), PIECE))
        if number % 60 == 30:
            pass_a_second()
            assert answers_others(server)
            most_mb = max(most_mb, private_mb(server))
    if framing == "chunks":
        connection.send(b"0\r\n\r\n")
    response = connection.getresponse()
    assert response.status == 200
    assert json.loads(response.read()) == {"sha256": digest.hexdigest(), "is_file": True}
    most_mb = max(most_mb, private_mb(server))
    assert most_mb - before_mb < 50
    # The connection can carry another request, and the file is deleted.
    connection.request("GET", "/health/live")
    assert connection.getresponse().status == 200
    connection.close()
    if sys.platform == "linux":
        (worker,) = server.workers
        assert [file for file in worker.open_files() if str(tmp_path) in file.path] == []


def test_an_upload_that_stops_or_is_too_large_is_refused(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 300000000\r\n\r\n" + PIECE)
        assert client.recv(65536).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 500000000\r\n\r\n")
        answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"400000000" in answer
    assert server.request("POST", "/v1/embeddings", EMBED + " " * 100_000)[0] == 413


def test_a_client_without_a_key_uploads_nothing(launch, tmp_path):
    (tmp_path / "wsgi.py").write_text(APP)
    arguments = ("-c", str(ROOT / "gunicorn.conf.py"))
    server = launch(*arguments, cwd=tmp_path, PYTHONPATH=str(ROOT), WORKERS="1", API_KEY_SECRET="k")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 300000000\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 401")


def test_a_large_file_is_sent_in_pieces_to_a_slow_reader_while_others_are_answered(server, tmp_path):
    """Given a steady reader that takes longer than CLIENT_TIMEOUT_S, then it receives the whole file."""
    digest = hashlib.sha256()
    with (tmp_path / "large").open("wb") as file:
        for _ in range(N_PIECES):
            file.write(PIECE)
            digest.update(PIECE)
    assert answers_others(server)
    before_mb, most_mb = private_mb(server), 0.0
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/download")
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["Content-Length"] == str(N_PIECES * len(PIECE))
    got = hashlib.sha256()
    for number in range(N_PIECES):
        got.update(response.read(len(PIECE)))
        if number % 60 == 30:
            pass_a_second()
            assert answers_others(server)
            most_mb = max(most_mb, private_mb(server))
    assert response.read() == b""
    assert got.hexdigest() == digest.hexdigest()
    assert most_mb - before_mb < 50
    connection.request("HEAD", "/download")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"")
    connection.request("GET", "/health/live")
    assert connection.getresponse().status == 200
    connection.close()
