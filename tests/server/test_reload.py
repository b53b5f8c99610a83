"""SIGHUP: which settings a reload changes, and that a wrong setting leaves the service as it was."""

import http.client
import json
import re
import signal
import socket
import threading

import pytest

from tests.server.conftest import FROM_FILE, MINILM, ROOT, free_port, until

PREFIX = "SIGHUP changes nothing, and the service goes on as it was: "


@pytest.fixture
def file(tmp_path):
    return tmp_path / ".env"


@pytest.fixture
def server(launch, file, tmp_path):
    """A server with 1 worker that reads its settings from the file, in a folder outside of the checkout."""
    port = free_port()
    file.write_text(f"PORT={port}\nWORKERS=1\n")
    server = launch("-c", str(ROOT / "gunicorn.conf.py"), wait=False, cwd=tmp_path, before=FROM_FILE, PORT=str(port))
    server.wait_until_ready()
    return server


@pytest.fixture
def asking(server):
    """Send requests on one connection until the test calls the result, which fails if a request failed."""
    ended, statuses, lost = threading.Event(), [], []

    def ask():
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        while not ended.wait(0.05):
            try:
                connection.request("POST", "/v1/embeddings", json.dumps({"model": MINILM, "input": f"{len(statuses)}"}))
                response = connection.getresponse()
                response.read()
                statuses.append(response.status)
            except (OSError, http.client.HTTPException) as error:
                lost.append(error)
                connection.close()
        connection.close()

    def end():
        ended.set()
        client.join(60)
        assert not lost
        assert set(statuses) == {200}

    client = threading.Thread(target=ask)
    client.start()
    yield end
    ended.set()
    client.join(60)


def error_after_sighup(server) -> str:
    """Send SIGHUP; return the one ERROR line that the server logs."""
    errors = lambda: [line for line in server.log.splitlines() if " ERROR [" in line]  # noqa: E731
    n_before = len(errors())
    server.process.send_signal(signal.SIGHUP)
    (error,) = until(lambda: errors()[n_before:], what="a line about the mistake")
    return error.partition("] ")[2]


@pytest.mark.fault("reload")
def test_a_mistake_costs_a_line_and_the_settings_are_taken_once_it_is_mended(server, asking, file, observed):
    workers = {worker.pid for worker in server.workers}
    right = file.read_text()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        mistakes = {
            "REQUEST_TIMEOUT_S=60s": r"REQUEST_TIMEOUT_S='60s' must be a whole number",
            "LOG_LEVEL=LOUD": r"LOG_LEVEL='LOUD' must be one of",
            "OTEL_EXPORTER_OTLP_ENDPOINT=ftp://x": r"OTEL_EXPORTER_OTLP_ENDPOINT=\(hidden\) must be an address",
            "DRAIN_S=30": r"DRAIN_S=30 must be less than GRACEFUL_TIMEOUT_S=30.*lower DRAIN_S",
            "GRACEFUL_TIMEOUT_S=5": r"GRACEFUL_TIMEOUT_S=5 is no more than the DRAIN_S=5 with which.*restart",
            "API_KEY=s3cret": r"\.env sets 'API_KEY', which is no setting; write API_KEY_SECRET=",
            # LOG_FORMAT does not take effect either, so the log keeps its format.
            f"PORT={taken}\nLOG_FORMAT=json": rf"cannot listen on 127\.0\.0\.1 port {taken}: Address already in use",
            "HOST=192.0.2.1": r"cannot listen on 192\.0\.2\.1 port \d+: Cannot assign .*; check HOST and PORT",
            "WORKERS=99": r"WORKERS=99 is more than the 4 for which a service that was started with WORKERS=1 has room",
        }
        for line, said in mistakes.items():
            name = line.partition("=")[0]
            file.write_text("".join(one for one in right.splitlines(keepends=True) if not one.startswith(name)) + line)
            assert re.fullmatch(f"{PREFIX}.*{said}.*", error_after_sighup(server))
        file.unlink()
        file.mkdir()
        error = error_after_sighup(server)
        assert ".env cannot be read as UTF-8 text" in error
        file.rmdir()
    assert {worker.pid for worker in server.workers} == workers
    assert "s3cret" not in server.log
    assert "Traceback" not in server.log
    asking()
    observed(f"{len(mistakes) + 1} mistakes, a line for each, the same worker goes on and no request is lost")

    port = free_port()
    file.write_text(f"PORT={port}\nWORKERS=2\nAPI_KEY_SECRET=key-1\nLOG_FORMAT=json\n")
    server.process.send_signal(signal.SIGHUP)
    server.port = port
    until(lambda: len(server.workers) == 2 and workers.isdisjoint(worker.pid for worker in server.workers))
    server.wait_until_ready()
    # The key changes only with a restart, and the log says so.
    assert len(server.embed("a cat")) == 1
    told = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    (waits,) = (line["message"] for line in told if line["level"] == "WARNING")
    assert waits == "SIGHUP does not take a change of API_KEY_SECRET, REQUIRE_AUTH; restart the service for it"
    assert any(f"ready at http://127.0.0.1:{port};" in line["message"] for line in told)
    observed("mended, the next SIGHUP takes it, another port included")
