"""Where models come from: a folder, the package, the hub (a small one on loopback) and its cache."""

import errno
import hashlib
import http.server
import json
import threading
from typing import ClassVar

import pytest

from embedding_api.config import load_settings
from embedding_api.engine import hub, sources
from embedding_api.errors import ModelLoadError

COMMIT = "c" * 40
FILES = {
    "org/good": {"config.json": b"{}", "modules.json": b"[]", "model.safetensors": b"weights", "onnx/model.onnx": b"x"},
    "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    "org/code": {"own.py": b"", "model.safetensors": b"weights"},
    "sentence-transformers/short": {"config.json": b"{}", "model.safetensors": b"weights"},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download asks for. `org/private` wants the token, `org/gated` lets nobody in."""

    asked: ClassVar[list] = []

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
        self.answer(200, data, **headers)

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def small_hub(monkeypatch, tmp_path):
    """The hub that downloads of this test ask, with an empty cache before it."""
    Hub.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield server
        server.shutdown()
        thread.join()


def locate(monkeypatch, models, **variables):
    monkeypatch.setenv("SUPPORTED_MODELS", models)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    return sources.locate(settings.supported_models[0], settings)


def test_the_default_model_comes_from_the_package_without_the_hub(monkeypatch, small_hub):
    folder = locate(monkeypatch, "sentence-transformers/all-MiniLM-L6-v2")
    assert (folder / "model.safetensors").stat().st_size > 90_000_000
    assert Hub.asked == []


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


def test_a_hub_model_is_downloaded_without_what_nobody_reads(monkeypatch, small_hub):
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
    ("models", "said"),
    [
        ("org/nope", "the hub has no such model, or it is private; check the name, or set HF_TOKEN"),
        ("org/private", "set HF_TOKEN"),
        ("org/gated", "it is gated; ask for access"),
        ("org/good@nope", "no revision 'nope'"),
    ],
)
def test_what_the_hub_does_not_give_is_told_with_the_cure(monkeypatch, small_hub, models, said):
    with pytest.raises(ModelLoadError) as refused:
        locate(monkeypatch, models)
    assert f"model {models.partition('@')[0]} " in str(refused.value)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_wrong_token_is_shown_to_nobody(monkeypatch, small_hub, capfd):
    with pytest.raises(ModelLoadError) as refused:
        locate(monkeypatch, "org/private", HF_TOKEN="wrong-token")
    assert "wrong-token" not in str(refused.value) + "".join(capfd.readouterr())


def test_an_empty_cache_without_a_connection_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelLoadError, match="the hub cannot be reached and the cache does not hold it"):
        locate(monkeypatch, "org/good", HF_HUB_OFFLINE="1")


def test_pickle_files_are_downloaded_where_they_are_allowed(monkeypatch, small_hub):
    assert (locate(monkeypatch, "org/pickled", ALLOW_PICKLE="true") / "pytorch_model.bin").read_bytes() == b"pickle"


def test_a_download_that_dies_is_told(monkeypatch):
    monkeypatch.setattr(sources.programs.sys, "executable", "/bin/false")
    with pytest.raises(ModelLoadError, match="ended with code 1"):
        locate(monkeypatch, "org/good")


def test_a_folder_is_taken_as_it_is(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert locate(monkeypatch, str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("models", "said"), [("/no/such", "there is no folder /no/such"), (".", "neither modules.json")]
)
def test_a_folder_without_a_model_is_refused(monkeypatch, models, said):
    with pytest.raises(ModelLoadError, match=said):
        locate(monkeypatch, models)


def test_code_comes_at_its_commit_and_without_what_else_the_repository_holds(monkeypatch, small_hub):
    folder = sources.fetch_code("org/code", COMMIT, load_settings())
    assert folder.name == COMMIT
    assert [path.name for path in folder.iterdir()] == ["own.py"]
    assert sources.fetch_code("org/code", None, load_settings()) == folder


def test_code_that_the_hub_does_not_have_is_told(monkeypatch, small_hub):
    with pytest.raises(ModelLoadError, match=r"code of a model from the Hugging Face hub \(org/nope\): the hub has no"):
        sources.fetch_code("org/nope", COMMIT, load_settings())


class TestTheProgram:
    """hub.py in this process, where its lines can be counted."""

    @pytest.mark.parametrize(
        ("raised", "said"),
        [
            (hub.errors.LocalEntryNotFoundError("x"), "cannot be reached"),
            (OSError("disk full\nmore"), "the download failed (OSError: disk full)"),
            (OSError(errno.ENOSPC, "No space left on device"), "set HF_HOME to a folder that"),
            (ValueError(), "the download failed (ValueError: )"),
        ],
    )
    def test_whatever_goes_wrong_is_one_line(self, monkeypatch, raised, said):
        def fail(*_, **__):
            raise raised

        monkeypatch.setattr(hub, "snapshot_download", fail)
        assert said in hub.main("a/b", "", "safe")["problem"]

    def test_pickles_are_ignored_unless_allowed(self, monkeypatch):
        asked = []
        monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: asked.append(options) or "/folder")
        assert hub.main("a/b", "v1", "safe") == hub.main("a/b", "", "all") == {"path": "/folder"}
        assert [options["revision"] for options in asked] == ["v1", None]
        assert ["*.bin" in options["ignore_patterns"] for options in asked] == [True, False]

    @pytest.mark.parametrize(
        ("error", "said"),
        [("RevisionNotFoundError", "no revision"), ("GatedRepoError", "gated"), ("RepositoryNotFoundError", "no such")],
    )
    def test_what_the_hub_refuses_is_told(self, monkeypatch, error, said):
        import httpx2

        cls = getattr(hub.errors, error)
        response = httpx2.Response(404, request=httpx2.Request("GET", "http://127.0.0.1"))

        def fail(*_, **__):
            raise cls("x", response=response)

        monkeypatch.setattr(hub, "snapshot_download", fail)
        assert said in hub.main("a/b", "v1", "safe")["problem"]
