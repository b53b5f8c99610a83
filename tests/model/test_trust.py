"""A model's own code runs, and its pickles are read, only if the operator allows it for that model."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from embedding_api.engine.start import load_engine
from embedding_api.errors import ModelLoadError
from embedding_api.settings import load_settings
from tests import models


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return models.save(models.bert_mean, tmp_path_factory.mktemp("models"))


def load(monkeypatch, served, **variables):
    for name, value in {"SUPPORTED_MODELS": served, "BACKEND": "torch", **variables}.items():
        monkeypatch.setenv(name, value)
    load_engine(load_settings()).close()


def with_code_in_a_module(plain: Path, folder: Path) -> Path:
    """Copy a model, and replace its pooling by a class in its own file, which makes the file `ran` when imported."""
    shutil.copytree(plain, folder)
    (folder / "own.py").write_text(
        "import pathlib\n"
        "from sentence_transformers.sentence_transformer.modules import Pooling\n"
        f"pathlib.Path({str(folder / 'ran')!r}).touch()\n"
        "class Own(Pooling):\n    pass\n"
    )
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "own.Own"
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def with_code_in_its_transformer(plain: Path, folder: Path) -> Path:
    """Copy a model, and name classes in its own file in its configuration, in transformers' `auto_map`."""
    shutil.copytree(plain, folder)
    (folder / "own.py").write_text(
        "import pathlib\n"
        "from transformers import BertConfig, BertModel\n"
        f"pathlib.Path({str(folder / 'ran')!r}).touch()\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class OwnModel(BertModel):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("bring", [with_code_in_a_module, with_code_in_its_transformer])
def test_a_models_code_does_not_run_where_another_model_is_trusted(plain, monkeypatch, tmp_path, bring, backend):
    source = bring(plain, tmp_path / "with-code")
    with pytest.raises(ModelLoadError, match="TRUST_REMOTE_CODE=coded"):
        load(monkeypatch, f"plain={plain},coded={source}", TRUST_REMOTE_CODE="plain", BACKEND=backend)
    assert not (source / "ran").exists()


@pytest.mark.parametrize("bring", [with_code_in_a_module, with_code_in_its_transformer])
def test_it_runs_where_that_model_is_trusted(plain, monkeypatch, tmp_path, bring):
    # transformers copies the code to this folder. The default is in the user's home.
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    source = bring(plain, tmp_path / "with-code")
    load(monkeypatch, f"plain={plain},coded={source}", TRUST_REMOTE_CODE="coded")
    assert (source / "ran").exists()


@pytest.fixture
def elsewhere(plain, tmp_path, monkeypatch):
    """A copy of a model with its code in another repository, and that repository's two commits in the hub's cache."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    source = with_code_in_its_transformer(plain, tmp_path / "with-code")
    config = json.loads((source / "config.json").read_text())
    config["auto_map"] = {key: f"org/code--{name}" for key, name in config["auto_map"].items()}
    (source / "config.json").write_text(json.dumps(config))
    repository = tmp_path / "hf/hub/models--org--code"
    old, new = "1" * 40, "2" * 40
    code = (source / "own.py").read_text()
    (source / "own.py").unlink()
    for commit in (old, new):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "own.py").write_text(code.replace("/ran'", f"/ran-{commit}'"))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(new)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return source, old, new


@pytest.mark.parametrize("trusted", ["", "coded", "coded,org/code"])
def test_code_in_another_repository_does_not_run_without_a_commit(elsewhere, monkeypatch, trusted):
    source, _, new = elsewhere
    with pytest.raises(ModelLoadError, match=rf"code of its own in org/code .*TRUST_REMOTE_CODE=coded,org/code@{new}"):
        load(monkeypatch, f"coded={source}", TRUST_REMOTE_CODE=trusted)
    assert not list(source.glob("ran*"))


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_code_in_another_repository_runs_at_the_commit_that_is_trusted(elsewhere, monkeypatch, backend):
    source, old, _ = elsewhere
    load(monkeypatch, f"coded={source}", TRUST_REMOTE_CODE=f"coded,org/code@{old}", BACKEND=backend)
    assert [path.name for path in source.glob("ran*")] == [f"ran-{old}"]


class Bomb:
    """An object that makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_pickle_is_not_read_even_where_safetensors_are_missing_in_one_module_alone(plain, monkeypatch, tmp_path):
    source = shutil.copytree(plain, tmp_path / "pickled")
    (source / "elsewhere").mkdir()
    (source / "model.safetensors").rename(source / "elsewhere" / "model.safetensors")
    bomb = source / "pytorch_model.bin"
    torch.save({"weights": Bomb(source / "ran")}, bomb)
    with pytest.raises(ModelLoadError, match="ALLOW_PICKLE=true"):
        load(monkeypatch, f"m={source}")
    assert not (source / "ran").exists()
    # The file is really a pickle that runs code.
    torch.load(bomb, weights_only=False)
    assert (source / "ran").exists()


def test_a_pickle_beside_safetensors_is_not_read(plain, monkeypatch, tmp_path):
    source = shutil.copytree(plain, tmp_path / "both")
    for name in ("pytorch_model.bin", "model.pkl", "training_args.bin", "optimizer.pt"):
        (source / name).write_bytes(pickle.dumps(Bomb(source / "ran")))
    load(monkeypatch, f"m={source}")
    assert not (source / "ran").exists()
