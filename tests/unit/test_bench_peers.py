"""The commands that start peers, with programs on the PATH that only record how they were called."""

import json
import sys
from pathlib import Path

import pytest

from bench import environments, peers, servers
from bench.environments import UnavailableError

# Records its arguments, then answers every GET with 200.
FAKE = f"""#!{sys.executable}
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

Path(__file__).with_suffix(".json").write_text(json.dumps(sys.argv[1:]))
HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """Return a function that puts a program of a name on the PATH, and returns the file of its arguments."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name: str) -> Path:
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
        return tmp_path / f"{name}.json"

    return put


def called(command: list[str], recorded: Path) -> dict[str, str]:
    """Start a server by its command; return its options."""
    with servers.start("fake", command, {}) as server:
        server.wait("/health")
        arguments = json.loads(recorded.read_text())
        options = dict(zip(arguments, [*arguments[1:], ""], strict=True))
        assert options["--port"] == str(server.address[1])
        return options


def test_a_program_that_is_not_there_is_unavailable(on_path):
    with pytest.raises(UnavailableError, match="llama-server is not on the PATH"):
        environments.program("llama-server")


def test_llama_cpp_listens_on_loopback_and_takes_texts_of_512_tokens_in_each_slot(on_path, tmp_path):
    recorded = on_path("llama-server")
    command = peers.llama_cpp_command(environments.program("llama-server"), tmp_path / "model.gguf", "minilm", 2)
    options = called(command, recorded)

    assert options["--host"] == "127.0.0.1"
    assert options["--model"] == str(tmp_path / "model.gguf")
    assert options["--alias"] == "minilm"
    assert "--embedding" in options
    assert options["--threads"] == "2"
    assert int(options["--ctx-size"]) == 512 * int(options["--parallel"])
    assert options["--ubatch-size"] == "512"


def test_text_embeddings_inference_listens_on_loopback_and_cuts_texts(on_path, tmp_path):
    recorded = on_path("text-embeddings-router")
    command = peers.tei_command(environments.program("text-embeddings-router"), tmp_path / "onnx", "minilm")
    options = called(command, recorded)

    assert options["--hostname"] == "127.0.0.1"
    assert options["--model-id"] == str(tmp_path / "onnx")
    assert options["--pooling"] == "mean"
    assert "--auto-truncate" in options
