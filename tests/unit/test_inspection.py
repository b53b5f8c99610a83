"""The inspection of a model's files before it is loaded: other kinds of model, missing weights, code."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from embedding_api.engine.models import files, kind
from embedding_api.engine.models.inspection import inspected, require_trust_used
from embedding_api.errors import ModelLoadError, SettingsError
from embedding_api.settings import load_settings

BASE = "sentence_transformers.base.modules"
POOLING = "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
COMMIT = "c" * 40


def write(file: Path, content) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file(content, file)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(json.dumps(content))
    return file


@pytest.fixture
def model(tmp_path):
    """The files of an embedding model with two modules."""
    folder = tmp_path / "model"
    modules = [("", f"{BASE}.transformer.Transformer"), ("1_Pooling", POOLING)]
    write(folder / "modules.json", [{"path": path, "type": type_} for path, type_ in modules])
    write(folder / "config.json", {"architectures": ["BertModel"], "model_type": "bert"})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 64})
    write(folder / "1_Pooling/config.json", {"embedding_dimension": 4, "pooling_mode": "mean"})
    write(folder / "model.safetensors", {"weight": np.zeros(4, np.float32)})
    write(folder / "tokenizer.json", {"model": {}})
    return folder


def nobody(repository, commit):
    raise AssertionError(f"{repository} was asked for")


def settings_of(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def inspect(folder, monkeypatch, fetch=nobody, **variables):
    """Inspect a folder as the only model; return what was found, and the contents of the files that would be loaded."""
    settings = settings_of(monkeypatch, SUPPORTED_MODELS=f"m={folder}", **variables)
    with inspected(settings.supported_models[0], folder, settings, fetch) as found:
        require_trust_used([found], settings)
        files = {str(path.relative_to(found.folder)): path.read_bytes() for path in found.folder.rglob("*.*")}
        return found, files


def refusal(folder, monkeypatch, *args, **variables) -> str:
    with pytest.raises(ModelLoadError) as refused:
        inspect(folder, monkeypatch, *args, **variables)
    message = str(refused.value)
    assert message.startswith(f"model m from {folder} cannot be served: ")
    assert "\n" not in message
    return message


def assumed(folder, window=None):
    return [finding.message for finding in kind.assumptions(folder, files.modules(folder), window)]


def without_modules(folder: Path) -> Path:
    (folder / "modules.json").unlink()
    shutil.rmtree(folder / "1_Pooling")
    return folder


def test_a_whole_model_is_loaded_from_its_own_folder(model, monkeypatch):
    found, _ = inspect(model, monkeypatch)
    assert (found.folder, found.code) == (model, [])
    assert [module.name for module in found.modules] == ["Transformer", "Pooling"]
    assert assumed(model) == []


class TestKind:
    @pytest.mark.parametrize("model_type", ["SparseEncoder", "CrossEncoder", "MultiVectorEncoder", "ColBERT", "New"])
    def test_a_model_saved_by_another_class_is_refused(self, model, monkeypatch, model_type):
        write(model / "config_sentence_transformers.json", {"model_type": model_type})
        assert f"says that it is a {model_type}" in refusal(model, monkeypatch)

    @pytest.mark.parametrize(
        ("type_", "message"),
        [
            ("sentence_transformers.sparse_encoder.models.SpladePooling", "a sparse encoder"),
            ("sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling", "a sparse encoder"),
            ("sentence_transformers.cross_encoder.modules.logit_score.LogitScore", "a reranker"),
            ("sentence_transformers.multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask", "multi-vector"),
            ("pylate.models.Dense.Dense", "multi-vector"),
            ("sentence_transformers.models.CLIPModel", "reads pictures"),
        ],
    )
    def test_a_module_that_only_another_kind_has_is_refused(self, model, monkeypatch, type_, message):
        write(model / "modules.json", [{"path": "", "type": type_}])
        assert message in refusal(model, monkeypatch)

    def test_a_kind_is_known_by_the_routes_of_a_router(self, model, monkeypatch):
        write(model / "modules.json", [{"path": "", "type": f"{BASE}.router.Router"}])
        types = {"query_0": "sentence_transformers.sparse_encoder.modules.SparseStaticEmbedding"}
        write(model / "router_config.json", {"types": types, "structure": {}, "parameters": {}})
        assert "a sparse encoder" in refusal(model, monkeypatch)

    @pytest.mark.parametrize("task", ["sequence-classification", "fill-mask"])
    def test_a_transformer_that_is_for_something_else_is_refused(self, model, monkeypatch, task):
        write(model / "sentence_bert_config.json", {"transformer_task": task})
        assert task in refusal(model, monkeypatch)

    def test_a_model_that_reads_pictures_too_is_refused(self, model, monkeypatch):
        write(model / "config.json", {"vision_config": {}, "text_config": {}})
        assert "reads pictures or sound: config.json has a vision_config" in refusal(model, monkeypatch)

    @pytest.mark.parametrize(
        ("architecture", "message"),
        [
            ("BertForSequenceClassification", "a reranker or a classifier"),
            ("BertForMaskedLM", "SPLADE"),
            ("Qwen3ForCausalLM", "a language model"),
            ("GPT2LMHeadModel", "a language model"),
            ("HF_ColBERT", "ColBERT"),
            ("BertForTokenClassification", "another task"),
            ("T5ForConditionalGeneration", "another task"),
            ("CLIPModel", "reads pictures"),
            ("ColQwen2ForRetrieval", "ColBERT"),
        ],
    )
    def test_modules_json_outranks_the_architecture(self, model, monkeypatch, architecture, message):
        write(model / "config.json", {"architectures": [architecture]})
        inspect(model, monkeypatch)
        assert message in refusal(without_modules(model), monkeypatch)

    @pytest.mark.parametrize("architectures", [["BertModel"], ["T5EncoderModel"], ["LlamaForEmbedding"], None])
    def test_a_base_model_is_served_with_a_warning_of_the_assumptions(self, model, monkeypatch, architectures):
        write(model / "config.json", {"architectures": architectures})
        inspect(without_modules(model), monkeypatch)
        (message,) = assumed(model, window=512)
        assert "the mean of the tokens' vectors, no normalization, and a window of 512 tokens" in message

    def test_modules_that_nothing_puts_together_are_refused(self, model, monkeypatch):
        (model / "modules.json").unlink()
        assert "it has 1_Pooling, but no modules.json" in refusal(model, monkeypatch)


class TestAssumptions:
    @pytest.mark.parametrize("config", [{"word_embedding_dimension": 4}, {"pooling_mode_mean_tokens": False}])
    def test_a_pooling_without_a_mode_is_a_warning(self, model, config):
        write(model / "1_Pooling/config.json", config)
        assert "1_Pooling/config.json names no way of pooling; the mean" in assumed(model)[0]

    @pytest.mark.parametrize(
        "config", [{"pooling_mode_cls_token": True}, {"pooling_mode_lasttoken": 1}, {"pooling_mode": ["cls", "max"]}]
    )
    def test_a_pooling_with_one_is_not(self, model, config):
        write(model / "1_Pooling/config.json", config)
        assert assumed(model) == []

    @pytest.mark.parametrize(
        ("noted", "of_tokenizer", "is_declared"),
        [(64, None, True), (None, 512, True), (None, None, False), (None, 10**30, False)],
    )
    def test_an_undeclared_window_is_a_warning(self, model, noted, of_tokenizer, is_declared):
        write(model / "sentence_bert_config.json", {"max_seq_length": noted})
        write(model / "tokenizer_config.json", {"model_max_length": of_tokenizer})
        assert [("64 tokens is assumed" in message) for message in assumed(model, window=64)] == [True] * (
            not is_declared
        )

    def test_a_transformer_without_its_configuration_is_refused(self, model, monkeypatch):
        (model / "config.json").unlink()
        assert "it has no config.json for its Transformer" in refusal(model, monkeypatch)

    def test_a_pooling_without_its_configuration_is_refused(self, model, monkeypatch):
        (model / "1_Pooling/config.json").unlink()
        assert "1_Pooling has no config.json" in refusal(model, monkeypatch)

    def test_a_dense_module_without_an_activation_is_a_warning(self, model):
        modules = json.loads((model / "modules.json").read_text())
        write(model / "modules.json", [*modules, {"path": "2_Dense", "type": f"{BASE}.dense.Dense"}])
        write(model / "2_Dense/config.json", {"in_features": 4, "out_features": 4})
        assert "2_Dense/config.json names no activation function; Tanh is assumed" in assumed(model)[0]


class TestTokenizer:
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("tokenizer.json", b"", "tokenizer.json is cut off"),
            ("tokenizer.json", b'{"model": {"vocab": {"a"', "tokenizer.json is cut off"),
            (
                "tokenizer.json",
                b"version https://git-lfs.github.com/spec/v1\n",
                "tokenizer.json is a pointer of git lfs",
            ),
            ("vocab.txt", b"version https://git-lfs.github.com/spec/v1\n", "vocab.txt is a pointer of git lfs"),
            ("special_tokens_map.json", b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
            ("added_tokens.json", b"[]", "its added_tokens.json holds no JSON object"),
        ],
    )
    def test_a_file_that_is_not_whole_is_named(self, model, monkeypatch, name, content, message):
        write(model / name, content)
        assert message in refusal(model, monkeypatch)

    def test_a_model_without_one_is_refused_and_any_kind_of_vocabulary_will_do(self, model, monkeypatch):
        (model / "tokenizer.json").unlink()
        assert "it has no tokenizer" in refusal(model, monkeypatch)
        write(model / "sentencepiece.bpe.model", b"x")
        inspect(model, monkeypatch)


class TestFolder:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("modules.json", b"{"),
            ("modules.json", {"path": ""}),
            ("modules.json", [{"path": ""}]),
            ("modules.json", []),
            ("modules.json", [{"path": "/etc", "type": POOLING}]),
            ("modules.json", [{"path": "../other", "type": POOLING}]),
            ("modules.json", [{"path": 1, "type": POOLING}]),
            ("modules.json", b"[" * 100_000),
            ("config.json", b"\xff"),
            ("config.json", [1]),
        ],
    )
    def test_a_file_without_the_expected_content_is_named(self, model, monkeypatch, name, content):
        write(model / name, content)
        message = refusal(model, monkeypatch)
        assert f"its {name} " in message
        assert message.endswith("get the model's files again")

    def test_a_modules_json_that_is_a_broken_link_is_refused(self, model, monkeypatch):
        (model / "modules.json").unlink()
        (model / "modules.json").symlink_to("nothing")
        assert "its modules.json cannot be read (No such file or directory)" in refusal(model, monkeypatch)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("config_sentence_transformers.json", {"model_type": ["x"]}, "says that it is a ['x']"),
            (
                "model.safetensors.index.json",
                {"weight_map": {"a": 1}, "metadata": {}},
                "does not say which files hold its weights",
            ),
            ("sentence_bert_config.json", {"tokenizer_name_or_path": "org/other"}, "its tokenizer lies elsewhere"),
        ],
    )
    def test_values_of_odd_types_and_paths_are_refused_in_one_line(self, model, monkeypatch, name, content, message):
        if "index" in name:
            (model / "model.safetensors").unlink()
        write(model / name, content)
        assert message in refusal(model, monkeypatch)

    def test_odd_values_that_mean_nothing_are_passed_over(self, model, monkeypatch):
        write(model / "sentence_bert_config.json", {"transformer_task": ["x"], "max_seq_length": 4})
        write(model / "config.json", {"vision_config": None, "architectures": "BertModel", "auto_map": 3})
        inspect(model, monkeypatch)

    def test_an_unreadable_folder_is_refused(self, model, monkeypatch):
        def fail(self, *_):
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "glob", fail)
        assert "1_Pooling: Permission denied; let this user read it" in refusal(model, monkeypatch)


class TestWeights:
    @pytest.mark.parametrize("is_allowed", ["false", "true"])
    @pytest.mark.parametrize(
        ("file", "message"),
        [
            ("onnx/model.onnx", "only files for ONNX (onnx/model.onnx)"),
            ("tf_model.h5", "only files for TensorFlow (tf_model.h5)"),
            ("flax_model.msgpack", "only files for Flax"),
            ("model-q8_0.gguf", "only files for GGUF"),
            ("openvino/openvino_model.xml", "only files for OpenVINO"),
            (".cache/huggingface/download/x.incomplete", "its download broke off; download it again"),
            ("README.md", "there is no model.safetensors; get the model's files again"),
        ],
    )
    def test_missing_weights_are_reported_with_existing_files(self, model, monkeypatch, file, message, is_allowed):
        (model / "model.safetensors").unlink()
        write(model / file, b"x")
        refused_with = refusal(model, monkeypatch, ALLOW_PICKLE=is_allowed)
        assert message in refused_with
        assert "ALLOW_PICKLE" not in refused_with

    @pytest.mark.parametrize(
        ("in_repository", "message"),
        [
            ({"model.safetensors": {}}, "its download broke off"),
            ({"pytorch_model.bin": {}}, "pytorch_model.bin is a pickle file; if you trust its source"),
            ({"onnx/model.onnx": {}}, "only files for ONNX (onnx/model.onnx)"),
            (None, "its download broke off"),
        ],
    )
    def test_a_snapshot_is_judged_by_its_repositorys_files(self, model, monkeypatch, in_repository, message):
        snapshot = model.parent / "models--acme--embed/snapshots" / COMMIT
        snapshot.parent.mkdir(parents=True)
        shutil.copytree(model, snapshot)
        (snapshot / "model.safetensors").unlink()
        if in_repository is not None:
            write(snapshot.parents[1] / "trees" / f"{COMMIT}.json", {"files": in_repository})
        assert message in refusal(snapshot, monkeypatch)

    def test_a_link_to_a_missing_file_is_named(self, model, monkeypatch):
        (model / "model.safetensors").unlink()
        (model / "model.safetensors").symlink_to("elsewhere")
        assert "it has no weights: model.safetensors is a link to elsewhere" in refusal(model, monkeypatch)
        snapshot = shutil.copytree(model, model.parent / "models--a--b/snapshots" / COMMIT, symlinks=True)
        assert "its download broke off; download it again" in refusal(snapshot, monkeypatch)

    @pytest.mark.parametrize("name", ["config_sentence_transformers.json", "modules.json", "1_Pooling/config.json"])
    def test_a_snapshot_that_lacks_a_small_file_of_its_repository_is_refused(self, model, monkeypatch, name):
        snapshot = model.parent / "models--acme--embed/snapshots" / COMMIT
        shutil.copytree(model, snapshot)
        write(snapshot.parents[1] / f"trees/{COMMIT}.json", {"files": {name: {}, "onnx/config.json": {}}})
        (snapshot / name).unlink(missing_ok=True)
        assert f"it lacks {name}: its download broke off; download it again" in refusal(snapshot, monkeypatch)

    def test_an_adapter_is_refused_with_the_name_of_its_base_model(self, model, monkeypatch):
        write(model / "adapter_config.json", {"base_model_name_or_path": "BAAI/bge-m3"})
        assert "it is an adapter of BAAI/bge-m3" in refusal(model, monkeypatch)

    def test_a_shard_that_is_missing_is_named(self, model, monkeypatch):
        (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
        index = {
            "metadata": {},
            "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
        }
        write(model / "model.safetensors.index.json", index)
        assert "1 of the 2 files of its weights are missing: model-00002-of-00002" in refusal(model, monkeypatch)
        write(model / "model-00002-of-00002.safetensors", {"b": np.zeros(1, np.float32)})
        inspect(model, monkeypatch)

    @pytest.mark.parametrize("place", ["", "2_Dense"])
    def test_pickled_weights_of_any_module_are_refused_unless_allowed(self, model, monkeypatch, place):
        modules = json.loads((model / "modules.json").read_text())
        write(model / "modules.json", [*modules, {"path": "2_Dense", "type": f"{BASE}.dense.Dense"}])
        write(model / "2_Dense/config.json", {"activation_function": "torch.nn.modules.linear.Identity"})
        write(model / "2_Dense/model.safetensors", {"weight": np.zeros(4, np.float32)})
        (model / place / "model.safetensors").unlink()
        write(model / place / "pytorch_model.bin", b"")
        message = refusal(model, monkeypatch)
        assert (
            f"{Path(place, 'pytorch_model.bin')} is a pickle file; if you trust its source, set ALLOW_PICKLE" in message
        )
        inspect(model, monkeypatch, ALLOW_PICKLE="true")

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "a pointer of git lfs.*git lfs pull"),
            (b"\x02" + bytes(7) + b"{}" + b"more", "SafetensorError.*get the model's files again"),
            (b"", "SafetensorError.*get the model's files again"),
        ],
        ids=["pointer of git lfs", "another length", "empty"],
    )
    def test_damaged_weights_are_refused(self, model, monkeypatch, content, why):
        write(model / "2_Other/model.bin", b"")
        (model / "model.safetensors").write_bytes(content)
        assert re.search(f"model.safetensors.*{why}", refusal(model, monkeypatch))

    def test_quantised_weights_are_refused(self, model, monkeypatch):
        write(model / "config.json", {"quantization_config": {"quant_method": "gptq"}})
        assert "quantised, which is not served: config.json has a quantization_config, gptq" in refusal(
            model, monkeypatch
        )
        write(model / "config.json", {})
        write(model / "model.safetensors", {"layer.weight": np.zeros(4, np.int8), "ids": np.zeros(4, np.int32)})
        assert "model.safetensors holds whole numbers in layer.weight" in refusal(model, monkeypatch)

    def test_the_weights_that_a_configuration_names_are_the_ones_that_count(self, model, monkeypatch):
        (model / "model.safetensors").rename(model / "own.safetensors")
        write(model / "config.json", {"transformers_weights": "own.safetensors"})
        inspect(model, monkeypatch)

    def test_other_formats_are_looked_for_where_the_weights_should_be(self, model, monkeypatch):
        modules = json.loads((model / "modules.json").read_text())
        write(model / "modules.json", [*modules, {"path": "2_Dense", "type": f"{BASE}.dense.Dense"}])
        write(model / "2_Dense/config.json", {"in_features": 4})
        write(model / "onnx/model.onnx", b"")
        assert "it has no weights in 2_Dense: there is no model.safetensors" in refusal(model, monkeypatch)

    def test_files_that_no_module_reads_do_not_matter(self, model, monkeypatch):
        write(model / "checkpoint-500/optimizer.safetensors", {"a": np.zeros(1, np.float32)})
        (model / "checkpoint-500/optimizer.safetensors").write_bytes(b"cut")
        write(model / "checkpoint-500/pytorch_model.bin", b"")
        write(model / "pytorch_model.bin", b"")
        write(model / "onnx/model.onnx", b"")
        inspect(model, monkeypatch)


class TestCode:
    @staticmethod
    def maps(model, value, file="config.json", key="AutoModel"):
        content = json.loads((model / file).read_text()) if (model / file).exists() else {}
        write(model / file, content | {"auto_map": {key: value}})

    @pytest.mark.parametrize(
        ("file", "key", "value"),
        [
            ("config.json", "AutoConfig", "own.OwnConfig"),
            ("config.json", "AutoModel", "own.OwnModel"),
            ("tokenizer_config.json", "AutoTokenizer", [None, "own.OwnTokenizer"]),
        ],
    )
    def test_code_beside_a_known_model_type_is_refused_unless_trusted(self, model, monkeypatch, file, key, value):
        self.maps(model, value, file, key)
        assert "own.Own" in (message := refusal(model, monkeypatch))
        assert message.endswith("read that, then name it in TRUST_REMOTE_CODE=m")
        found, _ = inspect(model, monkeypatch, TRUST_REMOTE_CODE="m")
        assert (found.folder, bool(found.code)) == (model, True)

    def test_code_that_loading_does_not_use_is_ignored(self, model, monkeypatch):
        self.maps(model, "own.OwnForCausalLM", key="AutoModelForCausalLM")
        assert not inspect(model, monkeypatch)[0].code

    def test_an_activation_of_its_own_is_code(self, model, monkeypatch):
        modules = json.loads((model / "modules.json").read_text())
        write(model / "modules.json", [*modules, {"path": "2_Dense", "type": f"{BASE}.dense.Dense"}])
        write(model / "2_Dense/model.safetensors", {"weight": np.zeros(4, np.float32)})
        write(model / "2_Dense/config.json", {"activation_function": "torch.nn.modules.linear.Identity"})
        inspect(model, monkeypatch)
        write(model / "2_Dense/config.json", {"activation_function": "own.Gated"})
        assert "(own.Gated)" in refusal(model, monkeypatch)

    def test_code_elsewhere_is_refused_with_the_commit_that_was_found(self, model, monkeypatch, tmp_path):
        self.maps(model, "org/code--own.OwnModel")
        asked = []

        def fetch(repository, commit):
            asked.append((repository, commit))
            return tmp_path / COMMIT

        for trusted in ("", "m", "m,org/code"):
            message = refusal(model, monkeypatch, fetch, TRUST_REMOTE_CODE=trusted)
            assert "code of its own in org/code (own.OwnModel)" in message
            assert message.endswith(f"TRUST_REMOTE_CODE=m,org/code@{COMMIT}")
        assert set(asked) == {("org/code", None)}

    def test_without_the_hub_the_message_has_a_placeholder_for_the_commit(self, model, monkeypatch):
        def fetch(repository, commit):
            raise ModelLoadError("the hub cannot be reached")

        self.maps(model, "org/code--own.OwnModel")
        assert "m,org/code@<its commit, 40 hexadecimal digits>" in refusal(model, monkeypatch, fetch)

    def test_trusted_code_elsewhere_is_put_beside_the_model(self, model, monkeypatch, tmp_path):
        write(tmp_path / "code/own.py", b"class OwnModel: pass")
        self.maps(model, "org/code--own.OwnModel")
        before = (model / "config.json").read_bytes()
        asked = []
        trusted = f"m,org/code@{COMMIT}"
        found, files = inspect(model, monkeypatch, lambda *names: asked.append(names) or tmp_path / "code",
                               TRUST_REMOTE_CODE=trusted)  # fmt: skip
        assert asked == [("org/code", COMMIT)]
        assert json.loads(files["config.json"])["auto_map"] == {"AutoModel": "own.OwnModel"}
        assert files["own.py"] == b"class OwnModel: pass"
        assert files["model.safetensors"] == (model / "model.safetensors").read_bytes()
        assert (model / "config.json").read_bytes() == before
        assert not found.folder.exists()

    def test_linked_folders_and_files_of_other_things_come_along_as_they_are(self, model, monkeypatch, tmp_path):
        (model / "1_Pooling").rename(tmp_path / "pooling")
        (model / "1_Pooling").symlink_to(tmp_path / "pooling")
        write(model / "checkpoint-5/config.json", b"{")
        self.maps(model, "org/code--own.OwnModel")
        (tmp_path / "code").mkdir()
        trusted = f"m,org/code@{COMMIT}"
        _, files_ = inspect(model, monkeypatch, lambda *_: tmp_path / "code", TRUST_REMOTE_CODE=trusted)
        assert files_["checkpoint-5/config.json"] == b"{"
        assert b"pooling_mode" in files_["1_Pooling/config.json"]

    def test_code_that_names_the_models_own_repository_lies_beside_it(self, model, monkeypatch):
        self.maps(model, "org/model--own.OwnModel")
        write(model / "own.py", b"")
        settings = settings_of(monkeypatch, SUPPORTED_MODELS="org/model", TRUST_REMOTE_CODE="org/model")
        with inspected(settings.supported_models[0], model, settings, nobody) as found:
            auto_map = json.loads((found.folder / "config.json").read_text())["auto_map"]
            assert auto_map == {"AutoModel": "own.OwnModel"}
            assert (found.folder / "own.py").exists()

    def test_another_file_of_the_same_name_is_refused_and_the_same_file_is_not(self, model, monkeypatch, tmp_path):
        write(tmp_path / "code/own.py", b"1")
        write(model / "own.py", b"1")
        self.maps(model, "org/code--own.OwnModel")
        trusted = {"TRUST_REMOTE_CODE": f"m,org/code@{COMMIT}"}
        inspect(model, monkeypatch, lambda *_: tmp_path / "code", **trusted)
        write(model / "own.py", b"2")
        message = refusal(model, monkeypatch, lambda *_: tmp_path / "code", **trusted)
        assert "the code in org/code has another own.py than the model" in message

    def test_code_that_transformers_has_taken_over_is_left_out_and_logged_unless_trusted(self, model, monkeypatch):
        write(model / "config.json", {"model_type": "nomic_bert"})
        self.maps(model, "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel")
        found, _ = inspect(model, monkeypatch)
        assert not found.code
        assert "modeling_hf_nomic_bert.NomicBertModel, is not used" in found.findings[0].message
        self.maps(model, "org/code--own.Fork")
        assert "(own.Fork)" in refusal(model, monkeypatch, lambda *_: Path(COMMIT))

    @pytest.mark.parametrize("entry", ["org/other", f"org/other@{COMMIT}"])
    def test_a_name_that_is_neither_a_model_nor_holds_code_is_refused(self, model, monkeypatch, entry):
        with pytest.raises(SettingsError, match=f"TRUST_REMOTE_CODE='{entry}' names neither a model"):
            inspect(model, monkeypatch, TRUST_REMOTE_CODE=entry)
