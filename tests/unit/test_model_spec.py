"""The entries of SUPPORTED_MODELS: which names and which source each model has."""

import pytest

from embedding_api.errors import SettingsError
from embedding_api.settings import load_settings
from embedding_api.settings.model_spec import ModelSpec

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def load(monkeypatch, models):
    monkeypatch.setenv("SUPPORTED_MODELS", models)
    return load_settings()


@pytest.mark.parametrize(
    ("entry", "name", "source", "revision", "names"),
    [
        ("BAAI/bge-m3", "BAAI/bge-m3", "BAAI/bge-m3", None, ("BAAI/bge-m3",)),
        ("bge = BAAI/bge-m3", "bge", "BAAI/bge-m3", None, ("bge", "BAAI/bge-m3")),
        ("BAAI/bge-m3@v1.0", "BAAI/bge-m3", "BAAI/bge-m3", "v1.0", ("BAAI/bge-m3",)),
        ("x=BAAI/bge-m3@refs/pr/1", "x", "BAAI/bge-m3", "refs/pr/1", ("x", "BAAI/bge-m3")),
        ("all-MiniLM-L6-v2", "all-MiniLM-L6-v2", MINILM, None, ("all-MiniLM-L6-v2", MINILM)),
    ],
)
def test_a_hub_model_is_named_by_alias_and_name(monkeypatch, entry, name, source, revision, names):
    (spec,) = load(monkeypatch, entry).supported_models
    assert spec == ModelSpec(name=name, source=source, revision=revision, is_folder=False)
    assert spec.names == names


@pytest.mark.parametrize(
    ("entry", "name"),
    [("{}/my-model", "my-model"), ("mine={}/my-model", "mine"), ("./my-model", "my-model"), ("my-model", "my-model")],
)
def test_a_folder_is_named_by_alias_or_its_last_part_never_its_path(monkeypatch, tmp_path, entry, name):
    (tmp_path / "my-model").mkdir()
    (spec,) = load(monkeypatch, entry.format(tmp_path)).supported_models
    assert spec == ModelSpec(name=name, source=str(tmp_path / "my-model"), revision=None, is_folder=True)
    assert spec.names == (name,)


@pytest.mark.parametrize(
    ("entry", "name", "source"),
    [
        ("{}/current", "current", "release-7"),
        ("{}/current/", "current", "release-7"),
        ("{}/current/.", "current", "release-7"),
        ("current", "current", "release-7"),
        ("./current", "current", "release-7"),
        ("~/current", "current", "release-7"),
        ("x={}/current", "x", "release-7"),
        ("{}/current/part", "part", "release-7/part"),
        ("{}/current/part/..", "release-7", "release-7"),
        ("{}/gone", "gone", "nothing"),
        ("{}/circle", "circle", "circle"),
    ],
)
def test_a_model_behind_a_link_has_the_links_name(monkeypatch, tmp_path, entry, name, source):
    (tmp_path / "release-7" / "part").mkdir(parents=True)
    for link, target in (("current", "release-7"), ("gone", "nothing"), ("circle", "circle")):
        (tmp_path / link).symlink_to(target)
    monkeypatch.setenv("HOME", str(tmp_path))
    (spec,) = load(monkeypatch, entry.format(tmp_path)).supported_models
    assert spec == ModelSpec(name=name, source=str(tmp_path / source), revision=None, is_folder=True)


def test_the_working_folder_and_its_parent_have_their_own_names(monkeypatch, tmp_path):
    (tmp_path / "my-model" / "part").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my-model" / "part")
    assert [spec.name for spec in load(monkeypatch, ".,..").supported_models] == ["part", "my-model"]


def test_the_home_folder_of_an_unknown_user_is_refused(monkeypatch):
    with pytest.raises(SettingsError, match="that home folder cannot be found; write the whole path"):
        load(monkeypatch, "~nobody-here/model")


def test_a_folder_with_an_equals_sign_is_a_folder(monkeypatch, tmp_path):
    (tmp_path / "a=b").mkdir()
    (spec,) = load(monkeypatch, "a=b").supported_models
    assert (spec.name, spec.source) == ("a=b", str(tmp_path / "a=b"))


def test_models_keep_their_order(monkeypatch):
    specs = load(monkeypatch, "b/b, a/a ,c/c").supported_models
    assert [spec.name for spec in specs] == ["b/b", "a/a", "c/c"]
