"""Makes a BERT of all-MiniLM-L6-v2's size with random weights, and its reference vectors on the CPU in float32.

A separate program: `python -m bench.device.model FOLDER`. FOLDER holds words.json, for the vocabulary, and texts.json.
The program writes the model to FOLDER/model, and the vectors of the texts, float32, (n_texts, dim), to reference.npy.
The vectors mean nothing, but cost as much to compute as real ones.
"""

import collections
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

N_LAYERS, DIM, N_HEADS, INTERMEDIATE, N_POSITIONS, WINDOW, N_VOCABULARY = 6, 384, 12, 1536, 512, 256, 30_522

_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}

# About that of trained weights. With BERT's initial 0.02 all texts have nearly the same vector, and no rounding shows.
_SPREAD = 0.05


def tokenizer(words: Sequence[str]) -> Tokenizer:
    """Return a WordPiece tokenizer whose vocabulary is the characters of these words and their most frequent parts.

    Tokens that no text holds fill it to BERT's size, as in BERT's own vocabulary.
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts: collections.Counter[str] = collections.Counter()
    for word, n_times in collections.Counter(words).items():
        for part, _ in splitter.pre_tokenize_str(normalizer.normalize_str(word)):
            counts[part] += n_times
    characters = sorted(set("".join(counts)))
    pieces = [*_TOKENS.values(), *characters, *(f"##{character}" for character in characters)]
    pieces += [part for part, _ in counts.most_common()]
    pieces += [f"[unused{number}]" for number in range(N_VOCABULARY)]
    pieces = list(dict.fromkeys(pieces))[:N_VOCABULARY]
    made = Tokenizer(models.WordPiece({piece: id_ for id_, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizer, splitter
    ends = [(token, pieces.index(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return made


def make(folder: Path, words: Sequence[str]) -> SentenceTransformer:
    """Write the model to a folder, and return it as sentence-transformers loads it, on the CPU in float32."""
    part = folder.with_name(f"{folder.name}.encoder")
    pieces = tokenizer(words)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=pieces.get_vocab_size(),
        hidden_size=DIM,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        intermediate_size=INTERMEDIATE,
        max_position_embeddings=N_POSITIONS,
        initializer_range=_SPREAD,
    )
    transformers.BertModel(config).save_pretrained(part)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, model_max_length=WINDOW, model_input_names=["input_ids", "attention_mask"], **_TOKENS
    ).save_pretrained(part)
    chain = SentenceTransformer(modules=[Transformer(str(part)), Pooling(DIM, "mean"), Normalize()], device="cpu")
    chain.save(str(folder), create_model_card=False)
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def main(folder: Path) -> None:
    """Write the model and the vectors of the texts."""
    transformers.utils.logging.disable_progress_bar()
    model = make(folder / "model", json.loads((folder / "words.json").read_text()))
    texts = json.loads((folder / "texts.json").read_text())
    np.save(folder / "reference.npy", model.encode(texts, show_progress_bar=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
