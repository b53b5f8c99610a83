"""Writes a BERT model of sentence-transformers as a GGUF file, for llama.cpp: float16 or Q8_0.

    python -m bench.gguf_model FOLDER FILE f16

Matrices have the precision that is asked for. The embeddings of positions and token types and everything with one
dimension stay in float32, as in llama.cpp's own conversion.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    MODEL_ARCH,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    PoolingType,
    TokenType,
    get_tensor_name_map,
    quants,
)
from safetensors.numpy import load_file
from tokenizers import Tokenizer

TYPES = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
_FLOAT32 = {"position_embd.weight", "token_types.weight"}
_POOLING = {"mean_tokens": PoolingType.MEAN, "cls_token": PoolingType.CLS, "lasttoken": PoolingType.LAST}

# The tokenizer of llama.cpp marks the beginning of a word, where BERT's vocabulary marks the continuation.
_WORD, _CONTINUATION = "\u2581", "##"


def main(folder: Path, file: Path, type_name: str) -> None:
    """Write a model's folder as a file.

    Raises:
        ValueError: The model is not of a kind that this module can write.
    """
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "bert":
        raise ValueError(f"the model is of type {config['model_type']}; only bert can be written as GGUF here")
    kind, file_type = TYPES[type_name]
    writer = GGUFWriter(file, "bert")
    writer.add_file_type(file_type)
    _add_architecture(writer, config, folder)
    _add_vocabulary(writer, folder, config)
    for name, values in tensors(folder, config["num_hidden_layers"]).items():
        chosen = GGMLQuantizationType.F32 if values.ndim == 1 or name in _FLOAT32 else kind
        writer.add_tensor(name, quants.quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(folder: Path, n_layers: int) -> dict[str, np.ndarray]:
    """Return the encoder's weights in float32 by their names in GGUF. BERT's own pooler is left out: nothing uses it.

    Raises:
        ValueError: A weight has no name in GGUF.
    """
    names = get_tensor_name_map(MODEL_ARCH.BERT, n_layers)
    found = {}
    for name, values in load_file(folder / "model.safetensors").items():
        if name.startswith("pooler.") or name == "embeddings.position_ids":
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ValueError(f"the weight {name} has no name in GGUF")
        found[target] = values.astype(np.float32)
    return found


def vocabulary(folder: Path, n_rows: int) -> tuple[list[str], list[TokenType]]:
    """Return the tokens in the order of their ids, as llama.cpp spells them, and the type of each."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    tokens, types = [], []
    for id_ in range(n_rows):
        token = tokenizer.id_to_token(id_)
        if token is None:
            tokens.append(f"[PAD{id_}]")
            types.append(TokenType.UNUSED)
        elif id_ in special:
            tokens.append(token)
            types.append(TokenType.CONTROL)
        else:
            is_rest = token.startswith(_CONTINUATION)
            tokens.append(token.removeprefix(_CONTINUATION) if is_rest else _WORD + token)
            types.append(TokenType.NORMAL)
    return tokens, types


def _add_architecture(writer: GGUFWriter, config: dict[str, Any], folder: Path) -> None:
    writer.add_name(folder.name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(value=False)
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    modes = [kind for mode, kind in _POOLING.items() if pooling.get(f"pooling_mode_{mode}")]
    if len(modes) != 1:
        raise ValueError(f"llama.cpp has no pooling like that of {folder}/1_Pooling/config.json")
    writer.add_pooling_type(modes[0])


def _add_vocabulary(writer: GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    tokens, types = vocabulary(folder, config["vocab_size"])
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    by_name = {token: id_ for id_, token in enumerate(tokens)}
    writer.add_unk_token_id(by_name["[UNK]"])
    writer.add_sep_token_id(by_name["[SEP]"])
    writer.add_pad_token_id(by_name["[PAD]"])
    writer.add_mask_token_id(by_name["[MASK]"])
    writer.add_bos_token_id(by_name["[CLS]"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
