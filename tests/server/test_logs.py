"""What real processes log in their life: one format, and each line of a request with its ids."""

import json
import re
import signal
import socket

import pytest

from tests.server.conftest import MINILM, ROOT, until

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"X-Request-ID": "id-1", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
LEVELS = "DEBUG|INFO|WARNING|ERROR|CRITICAL"


def live(server):
    """A whole life: requests, refused and malformed ones, a killed worker, renewed workers, the end."""
    assert server.request("POST", "/v1/embeddings", json.dumps({"model": MINILM, "input": "a cat"}), HEADERS)[0] == 200
    assert server.request("POST", "/v1/embeddings", "{", {"X-Request-ID": "id-2"})[0] == 400
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"what is this\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    server.workers[0].kill()
    until(lambda: "SIGKILL" in server.log, what="word of it")
    server.wait_until_ready()
    before = {worker.pid for worker in server.workers}
    server.process.send_signal(signal.SIGHUP)
    until(lambda: server.workers and not before & {worker.pid for worker in server.workers}, what="new workers")
    assert server.stop() == 0


def test_every_line_is_json_and_says_which_request_it_belongs_to(launch):
    server = launch(LOG_FORMAT="json", WORKERS="1")
    live(server)
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert all({"time", "level", "logger", "pid", "message"} <= set(line) for line in lines)
    (first,) = (line for line in lines if line.get("request_id") == "id-1")
    assert (first["message"], first["status"], first["trace_id"]) == ("request", 200, TRACE)
    (second,) = (line for line in lines if line.get("request_id") == "id-2")
    assert (second["status"], second.get("trace_id")) == (400, None)
    (refused,) = (line for line in lines if line["message"] == "malformed request refused")
    assert (refused["level"], refused["status"], len(refused["request_id"])) == ("INFO", 400, 32)
    # Gunicorn's, of the worker that was killed.
    assert any(line["logger"] == "gunicorn.error" and "SIGKILL" in line["message"] for line in lines)
    (model,) = (line for line in lines if line["message"] == "model loaded")
    assert (model["model"], model["dimensions"], model["window"]) == (MINILM, 384, 256)
    (limits,) = (line for line in lines if line["message"] == "limits")
    assert limits["queued_tokens"] > 0


def test_every_line_is_text_of_one_kind(launch):
    server = launch(WORKERS="1", API_KEY_SECRET="one,two", REQUIRE_AUTH="false")
    live(server)
    kind = re.compile(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{{4}} ({LEVELS}) \[\d+\] \S.*")
    assert [line for line in server.log.splitlines() if not kind.fullmatch(line)] == []
    assert f"request request_id=id-1 trace_id={TRACE} method=POST route=/v1/embeddings status=200 ms=" in server.log
    # Its readiness was asked for again and again.
    assert "route=/health/ready status=200" not in server.log


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_warning_in_a_worker_is_a_line_of_the_log(launch, tmp_path, log_format):
    (tmp_path / "wsgi.py").write_text(
        "import warnings\n"
        "from embedding_api import log\n"
        "from embedding_api.app import create_app\n"
        "from embedding_api.config import load_settings\n"
        "from tests.fakes import fake_engine\n"
        "log.configure(load_settings())\n"
        "app = create_app(engine=fake_engine())\n"
        "app.before_request(lambda: warnings.warn('mind\\nthat', UserWarning, stacklevel=1))\n"
    )
    conf = ("-c", str(ROOT / "gunicorn.conf.py"))
    server = launch(*conf, cwd=tmp_path, PYTHONPATH=str(ROOT), WORKERS="1", LOG_FORMAT=log_format)
    # Whoever asked whether it is ready caused it; Python warns once for a place.
    (line,) = (line for line in server.log.splitlines() if "mind that" in line)
    if log_format == "json":
        line = json.loads(line)
        assert (line["level"], line["logger"], len(line["request_id"])) == ("WARNING", "py.warnings", 32)
    else:
        assert re.search(r" WARNING \[\d+\] UserWarning: mind that \(.*wsgi\.py:8\) request_id=\w{32}$", line)
