"""The served model equals its files. If libraries would add or omit a part, the start fails or the log says so."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from embedding_api.engine.start import load_engine
from embedding_api.errors import ModelLoadError, UnsupportedTokenError
from embedding_api.settings import load_settings
from tests import models
from tests.model.conftest import LOADED


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = {}

    def save(make) -> Path:
        if make not in made:
            made[make] = models.save(make, tmp_path_factory.mktemp("saved"))
        return made[make]

    return save


@pytest.fixture
def changed(saved, tmp_path):
    """Return a function that copies a model, changes its weights, and sets values in its config.json."""

    def change(weights=lambda _: None, make=models.bert_mean, place="", **config) -> Path:
        folder = shutil.copytree(saved(make), tmp_path / "changed")
        file = folder / place / "model.safetensors"
        tensors = load_file(file)
        tensors = weights(tensors) or tensors
        save_file(tensors, file, metadata={"format": "pt"})
        if config:
            stored = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(stored | config))
        return folder

    return change


def load(monkeypatch, source, **variables):
    for name, value in {"SUPPORTED_MODELS": f"m={source}", "BACKEND": "torch", **variables}.items():
        monkeypatch.setenv(name, value)
    LOADED.append(load_engine(load_settings()))
    return LOADED[-1]


def vectors(monkeypatch, source, texts, **variables):
    engine = load(monkeypatch, source, **variables)
    engine.start()
    try:
        return engine.embed("m", texts).vectors
    finally:
        engine.close()


def refusal(monkeypatch, source, **variables) -> str:
    with pytest.raises(ModelLoadError) as refused:
        load(monkeypatch, source, **variables)
    message = str(refused.value)
    assert "\n" not in message
    return message


def found(caplog, level=logging.WARNING) -> list[str]:
    """Return the log messages about the model at this level, without its name."""
    stored = [record.getMessage() for record in caplog.records if record.levelno == level]
    return [message.removeprefix("model m: ") for message in stored if message.startswith("model m: ")]


def drop(*endings):
    return lambda tensors: {name: value for name, value in tensors.items() if not name.endswith(endings)}


def with_value(name, value, place=0):
    def change(tensors):
        tensors[name].view(-1)[place] = value
        return tensors

    return change


LAYER = "encoder.layer.1.attention.self.query."


class TestMissing:
    @pytest.mark.parametrize("backend", ["torch", "auto"])
    def test_weights_that_vectors_depend_on_are_named(self, changed, monkeypatch, caplog, backend):
        message = refusal(monkeypatch, changed(drop(f"{LAYER}weight", f"{LAYER}bias")), BACKEND=backend)
        assert (
            f"lack weights of BertModel that vectors depend on, which would be random numbers: {LAYER}bias" in message
        )
        # The cache also keeps the findings of a conversion, so that the next start reports them without converting.
        caplog.clear()
        caplog.set_level(logging.INFO)
        assert message == refusal(monkeypatch, load_settings().supported_models[0].source, BACKEND=backend)
        assert "converting" not in caplog.text

    def test_a_wrappers_prefix_is_shown_beside_them(self, changed, monkeypatch):
        source = changed(lambda tensors: {f"module.{name}": value for name, value in tensors.items()})
        message = refusal(monkeypatch, source)
        assert "they hold 0 of " in message
        assert "(module.embeddings" in message

    def test_an_unused_pooler_may_be_missing(self, changed, saved, monkeypatch, caplog):
        caplog.set_level(logging.INFO)
        source = changed(drop("pooler.dense.weight", "pooler.dense.bias"))
        got = vectors(monkeypatch, source, ["a cat"])
        assert found(caplog, logging.INFO) == [
            "weights that no vector depends on are missing: pooler.dense.bias, pooler.dense.weight"
        ]
        assert found(caplog) == []
        np.testing.assert_allclose(got, vectors(monkeypatch, saved(models.bert_mean), ["a cat"]), atol=1e-6)

    def test_a_layer_more_in_the_configuration_is_one_that_is_missing(self, changed, monkeypatch):
        assert "encoder.layer.2." in refusal(monkeypatch, changed(num_hidden_layers=3))

    def test_tied_weights_may_be_there_once_but_not_never(self, changed, saved, monkeypatch):
        assert load(monkeypatch, saved(models.t5_mean))
        source = changed(drop("shared.weight", "embed_tokens.weight"), make=models.t5_mean)
        assert "shared.weight" in refusal(monkeypatch, source)

    def test_weights_of_a_dense_module_are_named(self, changed, monkeypatch):
        source = changed(drop("bias"), make=models.bert_dense, place="2_Dense")
        assert '"linear.bias"' in refusal(monkeypatch, source)

    def test_a_shard_without_the_weights_of_its_index_is_refused(self, changed, monkeypatch):
        source = changed(drop(f"{LAYER}weight"))
        weights = load_file(source / "model.safetensors")
        (source / "model.safetensors").rename(source / "model-00001-of-00001.safetensors")
        index = {
            "metadata": {},
            "weight_map": dict.fromkeys([*weights, f"{LAYER}weight"], "model-00001-of-00001.safetensors"),
        }
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
        assert f"{LAYER}weight" in refusal(monkeypatch, source)


class TestOthers:
    def test_another_shape_is_named(self, changed, monkeypatch):
        message = refusal(monkeypatch, changed(intermediate_size=48))
        assert "another shape in its files than config.json gives them in BertModel: encoder.layer.0." in message
        assert "is (64,) and should be (48,)" in message

    def test_an_unused_head_is_logged_and_other_unused_weights_are_a_warning(self, changed, monkeypatch, caplog):
        caplog.set_level(logging.INFO)

        def add(tensors):
            names = ("classifier.bias", "cls.predictions.bias", "embeddings.extra.weight", "position_ids")
            return tensors | {name: torch.zeros(1) for name in names}

        load(monkeypatch, changed(add))
        assert found(caplog, logging.INFO) == ["weights of a head are left out: classifier.bias, cls.predictions.bias"]
        (message,) = found(caplog)
        assert "hold weights that BertModel has no place for, which are left out: embeddings.extra.weight; " in message

    def test_a_layer_less_in_the_configuration_is_a_warning(self, changed, monkeypatch, caplog):
        load(monkeypatch, changed(num_hidden_layers=1))
        assert "encoder.layer.1.attention" in found(caplog)[0]

    def test_every_start_logs_the_findings_of_the_conversion_once(self, changed, monkeypatch, caplog):
        source = changed(num_hidden_layers=1)
        (source / "1_Pooling/config.json").write_text('{"embedding_dimension": 32}')
        stored = json.loads((source / "config_sentence_transformers.json").read_text())
        stored["__version__"]["sentence_transformers"] = "99.0.0"
        (source / "config_sentence_transformers.json").write_text(json.dumps(stored))
        starts = []
        for backend in ("auto", "auto", "torch"):
            caplog.clear()
            load(monkeypatch, source, BACKEND=backend)
            starts.append(found(caplog))
        pooling, version, layer = starts[0]
        assert "names no way of pooling" in pooling
        assert "created with Sentence Transformers version 99.0.0" in version
        assert "encoder.layer.1" in layer
        assert starts == [starts[0]] * 3


class TestNumbers:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("backend", ["torch", "auto"])
    def test_a_model_that_gives_nan_is_refused_with_the_name_of_the_weight(self, changed, monkeypatch, value, backend):
        message = refusal(monkeypatch, changed(with_value(f"{LAYER}bias", value)), BACKEND=backend)
        assert "the model itself gives NaN or infinity" in message
        assert f"{LAYER}bias" in message

    def test_broken_weights_are_reported_before_unused_ones(self, changed, monkeypatch):
        def change(tensors):
            return drop("pooler.dense.weight", "pooler.dense.bias")(with_value(f"{LAYER}bias", float("nan"))(tensors))

        assert "gives NaN or infinity" in refusal(monkeypatch, changed(change))

    def test_weights_too_large_for_float32_are_named(self, changed, monkeypatch):
        def widen(tensors):
            name = f"{LAYER}bias"
            return tensors | {name: tensors[name].double() + 1e300}

        assert f"{LAYER}bias, read in float32" in refusal(monkeypatch, changed(widen))

    def test_a_row_that_is_none_is_a_warning_where_no_probe_reads_it(self, changed, monkeypatch, caplog):
        mask = 4 * models.SIZE["hidden_size"]
        load(monkeypatch, changed(with_value("embeddings.word_embeddings.weight", float("nan"), mask)))
        assert "embeddings.word_embeddings.weight, read in float32; a text" in found(caplog)[0]


class TestRows:
    """Tokens that the tokenizer has and for which the embedding matrix has no row."""

    @pytest.fixture
    def added(self, changed):
        def add(make, *, is_special=True) -> Path:
            source = changed(make=make)
            file = source / "tokenizer.json"
            tokenizer = json.loads(file.read_text())
            tokenizer["added_tokens"].append(
                {"id": models.N_VOCABULARY, "content": "[PRODUCT]", "single_word": False, "lstrip": False,
                 "rstrip": False, "normalized": False, "special": is_special}
            )  # fmt: skip
            file.write_text(json.dumps(tokenizer))
            return source

        return add

    @pytest.mark.parametrize(
        ("make", "backend"),
        [(models.bert_mean, "torch"), (models.bert_mean, "openvino"), (models.static_embedding, "torch")],
    )
    def test_a_text_with_a_token_without_a_row_is_refused(self, added, monkeypatch, caplog, make, backend):
        n_tokens = models.N_VOCABULARY
        engine = load(monkeypatch, added(make), BACKEND=backend, TOKEN_IDS="model")
        effect = "a text that holds one of them is refused with unsupported_token"
        assert f"'[PRODUCT]' ({n_tokens}); {effect}" in found(caplog)[0]
        engine.start()
        try:
            with pytest.raises(
                UnsupportedTokenError, match=rf"input\[1\] holds the token {n_tokens} \(\[PRODUCT\]\)"
            ) as stored:
                engine.embed("m", ["a cat", "buy the [PRODUCT] now"])
            assert stored.value.param == "input[1]"
            with pytest.raises(UnsupportedTokenError):
                engine.embed("m", [[5, n_tokens]])
            assert engine.embed("m", ["a cat"]).vectors.shape[0] == 1
        finally:
            engine.close()

    def test_a_tokenizer_of_another_model_is_refused(self, changed, monkeypatch):
        def cut(tensors):
            name = "embeddings.word_embeddings.weight"
            return tensors | {name: tensors[name][:100].clone()}

        message = refusal(monkeypatch, changed(cut, vocab_size=100))
        assert "any text holds a token for which its embedding matrix of 100 rows has no row" in message
        assert "get tokenizer and weights of one model" in message


def test_buffers_that_own_code_computes_are_filled(changed, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    source = changed(auto_map={"AutoModel": "own.OwnModel"})
    (source / "own.py").write_text(
        "import torch\n"
        "from transformers import BertModel\n"
        "class OwnModel(BertModel):\n"
        "    def __init__(self, config, **options):\n"
        "        super().__init__(config, **options)\n"
        "        self.register_buffer('table', torch.full((60_000, config.hidden_size), 7.0), persistent=False)\n"
        "    def forward(self, *args, **kwargs):\n"
        "        result = super().forward(*args, **kwargs)\n"
        "        result.last_hidden_state = result.last_hidden_state * self.table[0]\n"
        "        return result\n"
    )
    engine = load(monkeypatch, source, TRUST_REMOTE_CODE="m")
    engine.close()
    assert "its own code computes table when a model is made" in found(caplog)[0]
    backend = engine.models.models[0].route.backend
    assert (backend.model[0].model.table == 7).all()


def test_the_librarys_own_report_is_back_after_a_load_that_fails(changed, monkeypatch):
    before = transformers.modeling_utils.log_state_dict_report
    refusal(monkeypatch, changed(intermediate_size=48))
    assert transformers.modeling_utils.log_state_dict_report is before


@pytest.mark.parametrize("content", [b"<html>", b""])
def test_a_pickle_without_weights_is_refused_without_advice_to_run_its_code(changed, monkeypatch, content):
    source = changed()
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(content)
    message = refusal(monkeypatch, source, ALLOW_PICKLE="true")
    assert "a pickle file of its weights is damaged, or holds something else than weights" in message
    assert "weights_only" not in message


def test_a_tokenizer_with_too_few_tokens_is_a_warning(changed, monkeypatch, caplog):
    source = changed()
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    kept = {token: id_ for token, id_ in tokenizer["model"]["vocab"].items() if id_ < 200}
    tokenizer["model"]["vocab"] = kept
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    load(monkeypatch, source)
    assert "its tokenizer knows 200 tokens, and its embedding matrix has 600 rows" in found(caplog)[0]


def test_static_embeddings_compute_in_float32_whatever_they_are_stored_in(changed, monkeypatch):
    def halve(tensors):
        return {name: value.bfloat16() for name, value in tensors.items()}

    source = changed(halve, make=models.static_embedding)
    weights = load_file(source / "model.safetensors")["embedding.weight"].float().numpy()
    engine = load(monkeypatch, source)
    engine.start()
    try:
        ids = [10, 20, 30]
        route = engine.models.models[0].route
        np.testing.assert_allclose(route.backend.compute([np.array(ids)], 0)[0], weights[ids].mean(axis=0), rtol=1e-6)
    finally:
        engine.close()


def test_positions_are_the_limit_whatever_they_are_called(saved, monkeypatch):
    engine = load(monkeypatch, saved(models.gpt2_declared_too_long))
    assert engine.models.models[0].route.reader.window == models.WINDOW
    engine.close()


def test_a_model_without_pooling_is_refused(changed, monkeypatch):
    source = changed()
    modules = json.loads((source / "modules.json").read_text())
    (source / "modules.json").write_text(json.dumps(modules[:1]))
    assert "its modules give no vector of a text" in refusal(monkeypatch, source)
