"""The log of real processes has one format, and each line of a request has its ids."""

import json
import re
import signal
import socket

import pytest

from tests.server.conftest import MINILM, ROOT, until

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"X-Request-ID": "id-1", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
LEVELS = "DEBUG|INFO|WARNING|ERROR|CRITICAL"
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4}"


def live(server):
    """Send good, refused and malformed requests to a server, kill a worker, renew the workers, and stop the server."""
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
    # Gunicorn's line about the killed worker.
    assert any(line["logger"] == "gunicorn.error" and "SIGKILL" in line["message"] for line in lines)
    (model,) = (line for line in lines if line["message"] == "model loaded")
    assert (model["model"], model["dimensions"], model["window"]) == (MINILM, 384, 256)
    (limits,) = (line for line in lines if line["message"] == "limits")
    assert limits["queued_tokens"] > 0


def test_every_line_is_text_of_one_kind(launch):
    server = launch(WORKERS="1", API_KEY_SECRET="one,two", REQUIRE_AUTH="false")
    live(server)
    kind = re.compile(rf"{STAMP} ({LEVELS}) \[\d+\] \S.*")
    assert [line for line in server.log.splitlines() if not kind.fullmatch(line)] == []
    assert f"request request_id=id-1 trace_id={TRACE} method=POST route=/v1/embeddings status=200 ms=" in server.log
    # The test requested readiness many times.
    assert "route=/health/ready status=200" not in server.log


# Output that a library, a model's own code or a thread may make, while the service loads and in a worker.
STRANGE = """
import logging, sys, threading, traceback, warnings
from embedding_api.telemetry import log
from embedding_api.app import create_app
from embedding_api.settings import load_settings
from tests.fakes import fake_engine

class Unraisable:
    def __del__(self):
        raise ValueError("in __del__")

def strange():
    library = logging.getLogger("a_library")
    library.propagate, library.handlers = False, [logging.StreamHandler(), logging.StreamHandler(sys.stdout)]
    library.warning("\\x1b[1mthe\\n  table\\x1b[0m")
    warnings.warn("mind\\nthat", UserWarning, stacklevel=1)
    Unraisable()
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    try:
        raise KeyError("printed")
    except KeyError:
        traceback.print_exc()
    print("half a line", end="", file=sys.stderr, flush=True)

log.configure(load_settings())
warnings.simplefilter("always")
strange()
app = create_app(engine=fake_engine())
app.before_request(strange)
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_whatever_is_written_is_in_the_logs_format(launch, tmp_path, log_format):
    (tmp_path / "wsgi.py").write_text(STRANGE)
    conf = ("-c", str(ROOT / "gunicorn.conf.py"))
    server = launch(*conf, cwd=tmp_path, PYTHONPATH=str(ROOT), WORKERS="1", LOG_FORMAT=log_format)
    # The rehearsal of a request and the readiness check caused the same output in the worker.
    assert server.stop() == 0
    if log_format == "text":
        for message in ("the table", r"UserWarning: mind that \(.*wsgi\.py:\d+\)( request_id=\w{32})?", "half a line"):
            found = re.findall(rf"^{STAMP} WARNING \[(\d+)\] {message}.*$", server.log, re.MULTILINE)
            assert len({one[0] if isinstance(one, tuple) else one for one in found}) == 2, message
        return
    lines = [json.loads(line) for line in server.log.splitlines()]
    for level, name, message, exception in (
        ("WARNING", "a_library", "the table", ""),
        ("WARNING", "py.warnings", "UserWarning: mind that (", ""),
        (
            "ERROR",
            "embedding_api.telemetry.streams",
            "Exception ignored in: <function",
            "ValueError: in __del__",
        ),
        ("ERROR", "embedding_api.telemetry.streams", "thread Thread-", "ZeroDivisionError"),
        ("WARNING", "stderr", "KeyError: 'printed'", ""),
        ("WARNING", "stderr", "half a line", ""),
    ):
        found = [line for line in lines if (line["level"], line["logger"]) == (level, name)]
        found = [line for line in found if message in line["message"] and exception in line.get("exception", "")]
        assert len({line["pid"] for line in found}) == 2, message
        # A thread logs without a request's ids.
        assert any(line.get("request_id") for line in found) is ("thread" not in message), message


@pytest.mark.parametrize(
    ("application", "arguments", "settings", "message"),
    [
        ("", (), {"THREADS": "none"}, "cannot start: THREADS='none' must be"),
        ("", (), {"SUPPORTED_MODELS": "/no/such"}, "there is no folder /no/such"),
        ("", ("--certfile", "wsgi.py", "--keyfile", "wsgi.py"), {}, "cannot start: certfile and keyfile are set"),
        ("", ("--user", "nobody-here"), {}, "Error: No such user"),
        ("raise LookupError('a fault of ours')", (), {}, "uncaught exception"),
        ("raise KeyboardInterrupt", (), {}, "interrupted"),
    ],
)
def test_a_start_that_fails_says_so_in_json(launch, tmp_path, application, arguments, settings, message):
    (tmp_path / "wsgi.py").write_text(application or (ROOT / "wsgi.py").read_text())
    arguments = ("-c", str(ROOT / "gunicorn.conf.py"), *arguments)
    server = launch(*arguments, cwd=tmp_path, wait=False, PYTHONPATH=str(ROOT), LOG_FORMAT="json", **settings)
    assert server.process.wait(60) != 0
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert message in lines[-1]["message"]
    assert ("a fault of ours" in lines[-1].get("exception", "")) is ("a fault of ours" in application)
    if "cannot start" in message:
        assert lines[-1]["level"] == "CRITICAL"
