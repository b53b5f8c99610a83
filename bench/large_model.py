"""Makes a model of bge-m3's size with random weights: XLM-RoBERTa large, CLS pooling, Normalize; 2.3 GB on disk.

A separate program: `python -m bench.large_model FOLDER`. The model's vectors mean nothing, but cost as much to compute.
"""

import sys
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from bench.texts import Shelf

N_LAYERS, DIM, INTERMEDIATE, N_POSITIONS = 24, 1024, 4096, 8194

# XLM-RoBERTa's special tokens, in its order.
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-pair tokenizer trained on English docstrings. Its ids are a small part of the vocabulary."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    shelf = Shelf()
    trainer = trainers.BpeTrainer(vocab_size=8000, special_tokens=_SPECIAL, show_progress=False)
    made.train_from_iterator((shelf.text("long") for _ in range(400)), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=N_POSITIONS - 2,
        bos_token="<s>",
        cls_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def main(folder: Path) -> None:
    """Write the model: first the encoder and its tokenizer, then the chain of modules around them."""
    torch.manual_seed(0)
    encoder = XLMRobertaModel(
        XLMRobertaConfig(
            vocab_size=250002,
            hidden_size=DIM,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=16,
            intermediate_size=INTERMEDIATE,
            max_position_embeddings=N_POSITIONS,
            type_vocab_size=1,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
        )
    )
    part = folder.with_name(f"{folder.name}.encoder")
    encoder.save_pretrained(part)
    del encoder
    tokenizer().save_pretrained(part)
    first = Transformer(str(part))
    chain = SentenceTransformer(modules=[first, Pooling(DIM, pooling_mode="cls"), Normalize()], device="cpu")
    chain.save(str(folder))
    for file in part.iterdir():
        file.unlink()
    part.rmdir()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
