"""Where models come from: a folder, the package, the hub (a small one on loopback) and its cache."""

import errno
import hashlib
import http.server
import json
import re
import socket
import ssl
import subprocess
import threading
from typing import ClassVar

import pytest

from embedding_api.engine.models import sources
from embedding_api.engine.models.checksums import Checksums
from embedding_api.engine.models.hub import addresses
from embedding_api.engine.models.hub import download as hub
from embedding_api.errors import ModelLoadError
from embedding_api.settings import load_settings

COMMIT = "c" * 40
FILES = {
    "org/good": {"config.json": b"{}", "modules.json": b"[]", "model.safetensors": b"weights", "onnx/model.onnx": b"x"},
    "org/cut": {"config.json": b"{}", "model.safetensors": b"weights"},
    "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    "org/code": {"own.py": b"", "model.safetensors": b"weights"},
    "sentence-transformers/short": {"config.json": b"{}", "model.safetensors": b"weights"},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub that a download uses. `org/private` requires the token, and `org/gated` refuses everyone.

    A model of the owner `fault` is answered by its entry in `faults`: a status, a body and headers.
    """

    asked: ClassVar[list] = []
    faults: ClassVar[dict] = {}
    # Set at the end of a test. It ends responses that still wait.
    is_over = threading.Event()

    def do_CONNECT(self):
        self.answer(403, b"")

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.asked.append((self.path, self.headers.get("Authorization")))
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            self.describe(*path.removeprefix("/api/models/").partition("/revision/")[::2])
        else:
            name, _, rest = path.lstrip("/").partition("/resolve/")
            self.give(name, rest.partition("/")[2])

    def describe(self, name, revision):
        name, _, is_tree = name.partition("/tree/")
        if name == "fault/slow":
            self.is_over.wait(60)
        if name in self.faults:
            status, body, headers = self.faults[name]
            return self.answer(status, body, **headers)
        if name == "org/private" and self.headers.get("Authorization") == "Bearer good-token":
            name = "org/good"
        if name == "org/gated":
            return self.answer(403, b"{}", **{"X-Error-Code": "GatedRepo"})
        if name not in FILES:
            return self.answer(401, b"{}", **{"X-Error-Code": "RepoNotFound"})
        if revision not in ("", "main", "v1", COMMIT) and not is_tree:
            return self.answer(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
        if is_tree:
            tree = [
                {"type": "file", "path": file, "size": len(data), "oid": "0" * 40} for file, data in FILES[name].items()
            ]
            return self.answer(200, json.dumps(tree).encode())
        siblings = [{"rfilename": file} for file in FILES[name]]
        return self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())

    def give(self, name, file):
        data = FILES["org/good" if name == "org/private" else name][file]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}
        is_cut = name == "org/cut" and self.command == "GET"
        self.answer(200, data[: len(data) // 2] if is_cut else data, **headers, **{"Content-Length": str(len(data))})

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def small_hub(monkeypatch, tmp_path):
    """A hub for the downloads of one test, and an empty cache."""
    Hub.asked, Hub.faults = [], {}
    Hub.is_over.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("NO_PROXY", "")
        yield server
        Hub.is_over.set()
        server.shutdown()
        thread.join()


def locate(monkeypatch, models, **variables):
    monkeypatch.setenv("SUPPORTED_MODELS", models)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    return sources.locate(settings.supported_models[0], settings, Checksums())


def test_the_default_model_comes_from_the_package_without_the_hub(monkeypatch, small_hub):
    folder = locate(monkeypatch, "sentence-transformers/all-MiniLM-L6-v2")
    assert (folder / "model.safetensors").stat().st_size > 90_000_000
    assert Hub.asked == []


def test_the_weights_of_the_package_are_read_at_each_start(monkeypatch):
    """Given a wrong record of their checksum, then the start does not use it."""

    class Wrong(Checksums):
        def sha256(self, path, *, anew=False):
            return super().sha256(path) if anew else "0" * 64

    settings = load_settings()
    assert (sources.locate(settings.supported_models[0], settings, Wrong()) / "model.safetensors").exists()


def test_a_revision_of_it_comes_from_the_hub(monkeypatch, small_hub):
    with pytest.raises(ModelLoadError, match="the hub has no such model"):
        locate(monkeypatch, "sentence-transformers/all-MiniLM-L6-v2@v1")


def test_a_package_with_other_weights_is_refused(monkeypatch):
    package = sources._PACKAGES["sentence-transformers/all-MiniLM-L6-v2"]
    changed = package._replace(sha256="0" * 64)
    monkeypatch.setattr(sources, "_PACKAGES", {"sentence-transformers/all-MiniLM-L6-v2": changed})
    with pytest.raises(ModelLoadError, match=f"has the SHA-256 {package.sha256}, not {'0' * 64}; install"):
        locate(monkeypatch, "sentence-transformers/all-MiniLM-L6-v2")


def test_a_package_without_its_weights_is_refused(monkeypatch):
    broken = sources._Package("json", "0" * 64)
    monkeypatch.setattr(sources, "_PACKAGES", {"org/carried": broken})
    with pytest.raises(ModelLoadError, match="the package json cannot be read"):
        locate(monkeypatch, "org/carried")


def test_without_its_package_a_model_comes_from_the_hub(monkeypatch, small_hub):
    monkeypatch.setattr(sources, "_PACKAGES", {"org/good": sources._Package("no_such_package", "0" * 64)})
    assert (locate(monkeypatch, "org/good") / "model.safetensors").read_bytes() == b"weights"


def test_a_hub_model_is_downloaded_without_unused_files(monkeypatch, small_hub):
    folder = locate(monkeypatch, "org/good")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "config.json",
        "modules.json",
        "model.safetensors",
    }
    assert all(key is None for _, key in Hub.asked)


def test_a_name_without_an_organisation_is_one_of_sentence_transformers(monkeypatch, small_hub):
    assert (locate(monkeypatch, "short") / "model.safetensors").is_file()


def test_a_downloaded_model_is_found_again_without_the_hub(monkeypatch, small_hub):
    first = locate(monkeypatch, "org/good")
    small_hub.shutdown()
    small_hub.server_close()
    assert locate(monkeypatch, "org/good", HF_HUB_OFFLINE="1") == first


def test_a_private_model_is_downloaded_with_the_token(monkeypatch, small_hub):
    assert (locate(monkeypatch, "org/private", HF_TOKEN="good-token") / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("org/nope", "the hub has no such model, or it is private; check the name, or set HF_TOKEN"),
        ("org/private", "set HF_TOKEN"),
        ("org/gated", "it is gated; ask for access"),
        ("org/good@nope", "no revision 'nope'"),
    ],
)
def test_a_refusal_of_the_hub_is_reported_with_the_cure(monkeypatch, small_hub, models, message):
    with pytest.raises(ModelLoadError) as refused:
        locate(monkeypatch, models)
    assert f"model {models.partition('@')[0]} " in str(refused.value)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_wrong_token_is_in_no_message(monkeypatch, small_hub, capfd):
    with pytest.raises(ModelLoadError) as refused:
        locate(monkeypatch, "org/private", HF_TOKEN="wrong-token")
    assert "wrong-token" not in str(refused.value) + "".join(capfd.readouterr())


def test_an_empty_cache_without_a_connection_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelLoadError, match=f"HF_HUB_OFFLINE=1 forbids .* the cache {tmp_path}/hub does not hold it"):
        locate(monkeypatch, "org/good", HF_HUB_OFFLINE="1")


def test_an_invalid_address_of_the_hub_is_reported(monkeypatch):
    with pytest.raises(ModelLoadError, match=r"HF_ENDPOINT is no address; write"):
        locate(monkeypatch, "org/good", HF_ENDPOINT="http://[::")


def test_if_the_hub_fails_the_cache_is_used_and_the_reason_is_logged(monkeypatch, small_hub, caplog):
    first = locate(monkeypatch, "org/good")
    assert caplog.messages == []
    Hub.faults["org/good"] = (503, b"", {})
    assert locate(monkeypatch, "org/good") == first
    (line,) = caplog.messages
    assert "model org/good from the Hugging Face hub (org/good): it is served as the cache has it: " in line
    assert "answers 503: Service Unavailable); try again later" in line
    # A commit cannot change, so the start needs no answer from the hub.
    assert locate(monkeypatch, f"org/good@{COMMIT}") == first
    (first / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"503.*\(the cache holds only a part of it\)"):
        locate(monkeypatch, "org/good")


def test_warnings_of_the_library_are_logged_in_lines_without_the_token(monkeypatch, small_hub, caplog):
    Hub.faults["org/good"] = (503, b"", {"X-HF-Warning": "use; not wrong-token\tbut another"})
    with pytest.raises(ModelLoadError):
        locate(monkeypatch, "org/good", HF_TOKEN="wrong-token")
    assert caplog.messages == ["hub: not (hidden) but another"]


def test_pickle_files_are_downloaded_where_they_are_allowed(monkeypatch, small_hub):
    assert (locate(monkeypatch, "org/pickled", ALLOW_PICKLE="true") / "pytorch_model.bin").read_bytes() == b"pickle"


def test_a_download_that_dies_is_reported(monkeypatch):
    monkeypatch.setattr(sources.programs.sys, "executable", "/bin/false")
    with pytest.raises(ModelLoadError, match="ended with code 1"):
        locate(monkeypatch, "org/good")


def test_a_folder_is_used_as_it_is(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert locate(monkeypatch, str(tmp_path)) == tmp_path


@pytest.fixture
def repository(tmp_path):
    """Return a function that makes a model's folder in the hub's cache, with these snapshots."""

    def make(*commits, main="", files=("config.json", "model.safetensors")):
        folder = tmp_path / "models--org--good"
        (folder / "refs").mkdir(parents=True)
        (folder / "blobs").mkdir()
        for commit in commits:
            (folder / "snapshots" / commit).mkdir(parents=True)
            for file in files:
                (folder / "blobs" / file).write_bytes(b"")
                (folder / "snapshots" / commit / file).symlink_to(folder / "blobs" / file)
        if main:
            (folder / "refs" / "main").write_text(main)
        return folder

    return make


@pytest.mark.parametrize(("commits", "main", "wanted"), [(("a", "b"), "a", "a"), (("a",), "", "a")])
def test_a_folder_of_the_hubs_cache_is_that_of_its_snapshot(monkeypatch, repository, commits, main, wanted):
    folder = repository(*commits, main=main)
    assert locate(monkeypatch, str(folder)) == folder / "snapshots" / wanted
    assert load_settings().supported_models[0].name == "models--org--good"


def test_a_folder_of_the_hubs_cache_that_does_not_say_which_snapshot_is_refused(monkeypatch, repository):
    folder = repository("a", "b")
    with pytest.raises(ModelLoadError, match=f"several snapshots and no refs/main: a, b; name one of .*{folder}"):
        locate(monkeypatch, str(folder))


@pytest.mark.parametrize("commits", [(), ("a",)])
def test_a_folder_of_the_hubs_cache_without_the_snapshot_that_it_wants_is_refused(monkeypatch, repository, commits):
    folder = repository(*commits, main="b")
    (folder / "snapshots").mkdir(exist_ok=True)
    with pytest.raises(ModelLoadError, match=r"has no snapshot, since its download broke off.*=org/good does"):
        locate(monkeypatch, str(folder))


@pytest.mark.parametrize(
    ("models", "message"), [("/no/such", "there is no folder /no/such"), (".", "neither modules.json")]
)
def test_a_folder_without_a_model_is_refused(monkeypatch, models, message):
    with pytest.raises(ModelLoadError, match=message):
        locate(monkeypatch, models)


def test_code_is_downloaded_at_its_commit_and_without_other_files(monkeypatch, small_hub):
    folder = sources.fetch_code("org/code", COMMIT, load_settings())
    assert folder.name == COMMIT
    assert [path.name for path in folder.iterdir()] == ["own.py"]
    assert sources.fetch_code("org/code", None, load_settings()) == folder


def test_code_that_the_hub_does_not_have_is_reported(monkeypatch, small_hub):
    with pytest.raises(ModelLoadError, match=r"code of a model from the Hugging Face hub \(org/nope\): the hub has no"):
        sources.fetch_code("org/nope", COMMIT, load_settings())


@pytest.fixture
def ask(monkeypatch, small_hub, tmp_path):
    """Return a function that runs the download in this process, where coverage is measured, and returns its result."""
    addresses._token.cache_clear()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)

    def ask(name, endpoint=f"http://127.0.0.1:{small_hub.server_port}", *, revision="", files="safe"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setattr(hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        return hub.download(name, revision, files)

    # Progress bars start a thread.
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    yield ask
    hub.set_client_factory(hub.default_client_factory)
    addresses._token.cache_clear()


class TestWhyTheHubGivesNothing:
    @pytest.mark.parametrize(
        ("status", "headers", "token", "message"),
        [
            (
                401,
                {"X-Error-Message": "Token x is expired"},
                "hf_old",
                "does not accept HF_TOKEN (HUB answers 401: Tok",
            ),
            (
                401,
                {"X-Error-Message": "hf_old is bad"},
                "hf_old",
                "401: (hidden) is bad); put a valid token in",
            ),
            (401, {}, "", "the hub has no such model, or it is private; check the name, or set HF_TOKEN"),
            (401, {"X-Error-Code": "RepoNotFound"}, "hf_old", "no such model, or HF_TOKEN may not read it; check both"),
            (403, {}, "hf_old", "a proxy or firewall forbids it (HUB answers 403: Forbidden); let this machine reach"),
            (403, {"X-Error-Message": "no"}, "hf_old", "HF_TOKEN may not read it (HUB answers 403: no); give"),
            (403, {"X-Error-Code": "GatedRepo"}, "", "it is gated; ask for access on its page"),
            (404, {}, "", "no such model (HUB answers 404: Not Found); check the name and HF_ENDPOINT"),
            (404, {"X-Error-Code": "RevisionNotFound"}, "", "the hub has no revision"),
            (407, {}, "", "the proxy wants a user and a password"),
            (418, {}, "", "the hub refuses (HUB answers 418: I'm a Teapot); check"),
            (429, {"Retry-After": "300"}, "", "wait 300 s, or set HF_TOKEN: a token raises the limit"),
            (429, {"RateLimit": '"api";r=0;t=55'}, "hf_ok", "too many requests from here (HUB answers 429: Too Many"),
            (429, {}, "hf_ok", "wait some minutes"),
            (502, {}, "", "the hub is down or overloaded (HUB answers 502: Bad Gateway); try again later"),
            (200, {"Content-Type": "text/html"}, "", "HUB answers, but not as a hub does"),
            (302, {"Location": "/api/models/fault/it"}, "", "HUB answers, but not as a hub does"),
        ],
    )
    def test_each_status_is_reported_with_its_cure(self, monkeypatch, small_hub, ask, status, headers, token, message):
        monkeypatch.setenv("HF_TOKEN", token)
        Hub.faults["fault/it"] = (status, b"<html>", headers)
        assert message.replace("HUB", f"127.0.0.1:{small_hub.server_port}") in ask("fault/it")["problem"]

    @pytest.mark.parametrize(
        ("endpoint", "variables", "message"),
        [
            (
                "http://me:pw@127.0.0.1:FREE",
                {},
                "127.0.0.1:FREE failed ([Errno 111] Connection refused); check HF_ENDPOINT and the",
            ),
            ("https://no.such.invalid", {}, "connection to no.such.invalid failed ([Errno"),
            ("me:pw@nonsense", {}, "HF_ENDPOINT='nonsense' is no address of a hub; write https://"),
            ("ftp://me:pw@127.0.0.1", {}, "HF_ENDPOINT='ftp://127.0.0.1' is no address of a hub"),
            ("https://127.0.0.1:HUB", {}, "127.0.0.1:HUB fails at TLS"),
            ("http://127.0.0.1:HUB", {"HTTP_PROXY": "http://me:pw@127.0.0.1:FREE"}, "of HTTP_PROXY (127.0.0.1:FREE)"),
            (
                "https://hub.invalid",
                {"HTTPS_PROXY": "http://me:pw@127.0.0.1:HUB"},
                "to hub.invalid through the proxy of HTTPS_PROXY (127.0.0.1:HUB) failed (403",
            ),
            (
                "https://hub.invalid",
                {"HTTPS_PROXY": "http://p.invalid"},
                "proxy of HTTPS_PROXY (p.invalid) failed ([Errno",
            ),
            ("http://127.0.0.1:HUB", {"HTTP_PROXY": "what://me:pw@x"}, "names no proxy (Unknown scheme"),
            ("http://127.0.0.1:HUB", {"SSL_CERT_FILE": "/no/such"}, "SSL_CERT_FILE=/no/such cannot be read"),
            ("http://127.0.0.1:HUB", {"HF_TOKEN": "hf_\xe9"}, "HF_TOKEN holds characters that no token has"),
        ],
    )
    def test_failed_connections_are_reported(self, monkeypatch, small_hub, ask, endpoint, variables, message):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports = {"FREE": str(free.getsockname()[1]), "HUB": str(small_hub.server_port)}

        def filled(text):
            return re.sub("FREE|HUB", lambda match: ports[match[0]], text)

        for name, value in variables.items():
            monkeypatch.setenv(name, filled(value))
        problem = ask("org/good", filled(endpoint))["problem"]
        assert filled(message) in problem
        assert "\n" not in problem
        assert "pw" not in problem

    def test_a_hub_that_does_not_answer_is_not_waited_for(self, monkeypatch, ask):
        monkeypatch.setattr(hub, "_TIMEOUT_S", 0.2)
        assert "failed (timed out); check HF_ENDPOINT" in ask("fault/slow")["problem"]

    def test_without_a_connection_nothing_is_asked(self, monkeypatch, ask):
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
        assert "TRANSFORMERS_OFFLINE=1 forbids to ask the hub" in ask("org/good")["problem"]
        assert Hub.asked == []

    def test_a_download_that_breaks_off_ends(self, monkeypatch, ask):
        waits = []
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", waits.append)
        assert "the connection to 127.0.0.1" in (problem := ask("org/cut")["problem"])
        assert "failed (peer closed connection" in problem
        assert waits
        # With chunks of one byte, the library takes each received byte for progress, and would try again without end.
        monkeypatch.setattr(hub.constants, "DOWNLOAD_CHUNK_SIZE", 1)
        assert "broke off at the same place each time; a proxy" in ask("org/cut")["problem"]

    def test_an_untrusted_certificate_is_reported_and_trusted_once_it_is_named(
        self, monkeypatch, small_hub, ask, tmp_path
    ):
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        subprocess.run(
            "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 "
            f"-keyout {key} -out {certificate}",
            shell=True,
            check=True,
            capture_output=True,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        small_hub.socket = context.wrap_socket(small_hub.socket, server_side=True)
        endpoint = f"https://127.0.0.1:{small_hub.server_port}"
        message = f"127.0.0.1:{small_hub.server_port} is not trusted (self-signed certificate); if"
        assert message in ask("org/good", endpoint)["problem"]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert "path" in ask("org/good", endpoint)

    @pytest.mark.parametrize(
        ("raised", "message"),
        [
            (OSError("disk full\nmore"), "the download failed (OSError: disk full)"),
            (OSError(errno.ENOSPC, "No space left on device"), "set HF_HOME to a folder that"),
            (ValueError(), "the download failed (ValueError: )"),
            (hub.errors.HFValidationError("'a--b'"), "the hub can have no such model ('a--b'); check the name"),
        ],
    )
    def test_whatever_goes_wrong_is_one_line(self, monkeypatch, ask, raised, message):
        def fail(*_, **__):
            raise raised

        monkeypatch.setattr(hub, "snapshot_download", fail)
        problem = ask("org/good")["problem"]
        assert message in problem
        assert "\n" not in problem
