"""Tiny models with random weights, of the kinds that users serve. sentence-transformers makes and saves them."""

import inspect
import json
import os
import shutil
import textwrap
from pathlib import Path

import sentencepiece
import torch
import tqdm
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# sentence-transformers shows progress bars while it saves, and these would start a thread.
tqdm.tqdm.monitor_interval = 0

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WINDOW, LONG_WINDOW = 64, 512
N_VOCABULARY = 600


def _corpus() -> list[str]:
    return [
        inspect.getdoc(item) for item in (*vars(str).values(), *vars(dict).values(), textwrap, json, os) if item.__doc__
    ]


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(_corpus(), trainers.WordPieceTrainer(vocab_size=N_VOCABULARY, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def _sentence_piece() -> Tokenizer:
    """Return a tokenizer like that of XLM-RoBERTa and MPNet: <s> text </s>, with <pad> at 1."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=N_VOCABULARY, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def _bytes() -> Tokenizer:
    """Return a tokenizer like that of decoders: byte pairs, no token before a text, <eos> after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCABULARY, special_tokens=["<pad>", "<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return tokenizer


_BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
_ROBERTA = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>",
            "cls_token": "<s>", "sep_token": "</s>"}  # fmt: skip
_DECODER = {"pad_token": "<pad>", "eos_token": "<eos>"}


def _transformer(
    folder: Path, config, tokenizer: Tokenizer, tokens: dict, *, window: int = WINDOW, **options
) -> Transformer:
    """Return a Transformer module with this configuration."""
    _save_weights(folder / "base", config)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=window, **tokens, **options
    )
    fast.save_pretrained(folder / "base")
    return Transformer(str(folder / "base"))


def _save_weights(folder: Path, config, kind=transformers.AutoModel) -> None:
    """Save a model with this configuration. Its weights are random, and the same in every run."""
    torch.manual_seed(7)
    model = kind.from_config(config)
    # Random weights are small, and with small weights every text has almost the same vector.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)


def _bert(folder: Path, **options) -> Transformer:
    config = transformers.BertConfig(**SIZE, vocab_size=N_VOCABULARY, max_position_embeddings=WINDOW)
    return _transformer(folder, config, _word_piece(), _BERT, **options)


def _decoder(folder: Path, padding_side: str) -> Transformer:
    config = transformers.Qwen2Config(
        **SIZE, num_key_value_heads=2, vocab_size=N_VOCABULARY, max_position_embeddings=WINDOW, pad_token_id=0
    )
    return _transformer(folder, config, _bytes(), _DECODER, padding_side=padding_side)


def bert_mean(folder):
    return SentenceTransformer(modules=[_bert(folder), Pooling(32, "mean"), Normalize()])


def bert_long_window(folder):
    """A model whose window is longer than a usual batch."""
    config = transformers.BertConfig(**SIZE, vocab_size=N_VOCABULARY, max_position_embeddings=LONG_WINDOW)
    transformer = _transformer(folder, config, _word_piece(), _BERT, window=LONG_WINDOW)
    return SentenceTransformer(modules=[transformer, Pooling(32, "mean"), Normalize()])


def bert_small_window(folder):
    """A model whose window is shorter than the texts of the measurement at the start."""
    config = transformers.BertConfig(**SIZE, vocab_size=N_VOCABULARY, max_position_embeddings=32)
    transformer = _transformer(folder, config, _word_piece(), _BERT, window=32)
    return SentenceTransformer(modules=[transformer, Pooling(32, "mean"), Normalize()])


def bert_unnormalized(folder):
    return SentenceTransformer(modules=[_bert(folder), Pooling(32, "mean")])


def bert_several_poolings(folder):
    return SentenceTransformer(modules=[_bert(folder), Pooling(32, ("cls", "max", "mean_sqrt_len_tokens"))])


def bert_weighted_mean(folder):
    return SentenceTransformer(modules=[_bert(folder), Pooling(32, "weightedmean"), Normalize()])


def bert_dense(folder):
    torch.manual_seed(8)
    dense = Dense(32, 16, activation_function=torch.nn.Tanh())
    return SentenceTransformer(modules=[_bert(folder), Pooling(32, "mean"), dense, Normalize()])


def bert_left_truncated(folder):
    return SentenceTransformer(modules=[_bert(folder, truncation_side="left"), Pooling(32, "mean"), Normalize()])


def bert_default_prompt(folder):
    modules = [_bert(folder), Pooling(32, "mean"), Normalize()]
    prompts = {"query": "query: ", "passage": "represent the passage: "}
    return SentenceTransformer(modules=modules, prompts=prompts, default_prompt_name="passage")


def bert_prompts(folder):
    """A model with the prompts of retrieval models, one more prompt, and no default prompt."""
    modules = [_bert(folder), Pooling(32, "mean"), Normalize()]
    prompts = {"query": "query: ", "document": "text: ", "topic": "find the topic of this: "}
    return SentenceTransformer(modules=modules, prompts=prompts)


def bert_prompts_not_pooled(folder):
    modules = [_bert(folder), Pooling(32, "mean", include_prompt=False), Normalize()]
    return SentenceTransformer(modules=modules, prompts={"query": "query: ", "document": "represent the passage: "})


def bert_passage_prompt(folder):
    """A model with a default prompt for passages, and no prompt for queries."""
    modules = [_bert(folder), Pooling(32, "mean"), Normalize()]
    return SentenceTransformer(modules=modules, prompts={"passage": "passage: "}, default_prompt_name="passage")


def bert_nameless_prompt(folder):
    """A model with a prompt whose name is empty and which is not the default."""
    modules = [_bert(folder), Pooling(32, "mean"), Normalize()]
    return SentenceTransformer(modules=modules, prompts={"": "nameless: "})


def bert_short_queries(folder):
    """A model that reads less of a query than of a document; its tokenizer declares another length."""
    bert = _bert(folder)
    bert.query_length, bert.document_length = 16, 999
    return SentenceTransformer(modules=[bert, Pooling(32, "mean"), Normalize()])


def bert_expanded_queries(folder):
    bert = _bert(folder)
    bert.query_expansion = {"strategy": "fixed", "length": 32, "attend": True}
    return SentenceTransformer(modules=[bert, Pooling(32, "mean"), Normalize()])


def bert_prompt_not_pooled(folder):
    modules = [_bert(folder), Pooling(32, "mean", include_prompt=False), Normalize()]
    return SentenceTransformer(modules=modules, prompts={"task": "represent this: "}, default_prompt_name="task")


def bert_truncated_dimensions(folder):
    return SentenceTransformer(modules=[_bert(folder), Pooling(32, "mean"), Normalize()], truncate_dim=12)


def xlm_roberta_cls(folder):
    """A model with the modules of BAAI/bge-m3."""
    config = transformers.XLMRobertaConfig(
        **SIZE, vocab_size=N_VOCABULARY, max_position_embeddings=WINDOW + 2, pad_token_id=1, type_vocab_size=1
    )
    transformer = _transformer(folder, config, _sentence_piece(), _ROBERTA)
    return SentenceTransformer(modules=[transformer, Pooling(32, "cls"), Normalize()])


def mpnet_mean(folder):
    config = transformers.MPNetConfig(
        **SIZE, vocab_size=N_VOCABULARY, max_position_embeddings=WINDOW + 2, pad_token_id=1
    )
    transformer = _transformer(folder, config, _sentence_piece(), _ROBERTA)
    return SentenceTransformer(modules=[transformer, Pooling(32, "mean"), Normalize()])


def modernbert_cls(folder):
    config = transformers.ModernBertConfig(
        **SIZE, vocab_size=N_VOCABULARY, max_position_embeddings=WINDOW, pad_token_id=0, cls_token_id=2,
        sep_token_id=3, bos_token_id=2, eos_token_id=3, local_attention=16, attn_implementation="sdpa",
    )  # fmt: skip
    transformer = _transformer(folder, config, _word_piece(), _BERT)
    return SentenceTransformer(modules=[transformer, Pooling(32, "cls"), Normalize()])


def modernbert_long_window(folder):
    """A model whose local attention covers more tokens than a probe text has."""
    config = transformers.ModernBertConfig(
        **SIZE, vocab_size=N_VOCABULARY, max_position_embeddings=LONG_WINDOW, pad_token_id=0, cls_token_id=2,
        sep_token_id=3, bos_token_id=2, eos_token_id=3, local_attention=256, attn_implementation="sdpa",
    )  # fmt: skip
    transformer = _transformer(folder, config, _word_piece(), _BERT, window=LONG_WINDOW)
    return SentenceTransformer(modules=[transformer, Pooling(32, "cls"), Normalize()])


def decoder_last_token(folder):
    return SentenceTransformer(modules=[_decoder(folder, "left"), Pooling(32, "lasttoken"), Normalize()])


def decoder_last_token_padded_right(folder):
    return SentenceTransformer(modules=[_decoder(folder, "right"), Pooling(32, "lasttoken"), Normalize()])


def gpt2_declared_too_long(folder):
    """A model that declares more tokens than it has positions."""
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=N_VOCABULARY, n_positions=WINDOW, pad_token_id=0
    )
    transformer = _transformer(folder, config, _bytes(), _DECODER, window=LONG_WINDOW)
    transformer.max_seq_length = LONG_WINDOW
    return SentenceTransformer(modules=[transformer, Pooling(32, "mean"), Normalize()])


def t5_mean(folder):
    """A T5 model, whose encoder and decoder share an embedding matrix."""
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=N_VOCABULARY, pad_token_id=1
    )
    torch.manual_seed(7)
    transformers.T5EncoderModel(config).save_pretrained(folder / "base")
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=_sentence_piece(), model_max_length=WINDOW, **tokens
    ).save_pretrained(folder / "base")
    return SentenceTransformer(modules=[Transformer(str(folder / "base")), Pooling(32, "mean"), Normalize()])


def static_embedding(folder):
    torch.manual_seed(9)
    return SentenceTransformer(modules=[StaticEmbedding(_word_piece(), embedding_dim=24)])


def router_with_default(folder):
    modules = [_bert(folder), Pooling(32, "mean"), Normalize()]
    torch.manual_seed(10)
    query = [StaticEmbedding(_word_piece(), embedding_dim=32), Normalize()]
    return SentenceTransformer(modules=[Router.for_query_document(query, modules, default_route="document")])


def router_prompts(folder):
    """A model with one route for queries and one for documents, each with a prompt. Only documents are normalized."""
    torch.manual_seed(11)
    query = [_bert(folder), Pooling(32, "cls"), Dense(32, 24)]
    document = [_bert(folder), Pooling(32, "mean", include_prompt=False), Dense(32, 24), Normalize()]
    router = Router.for_query_document(query, document, default_route="document")
    return SentenceTransformer(modules=[router], prompts={"query": "query: ", "document": "represent the passage: "})


def router_mappings(folder):
    """A model whose routes have other names than the tasks."""
    torch.manual_seed(12)
    routes = {"fast": [StaticEmbedding(_word_piece(), embedding_dim=32)], "slow": [_bert(folder), Pooling(32, "mean")]}
    mappings = {("query", None): "fast", (None, "text"): "slow"}
    return SentenceTransformer(modules=[Router(routes, default_route="fast", route_mappings=mappings), Normalize()])


def router_of_other_tasks(folder):
    """A model with routes for tasks that the service does not have, and with a window for queries."""
    bert = _bert(folder)
    bert.query_length = 16
    routes = {"prose": [bert, Pooling(32, "mean")], "code": [StaticEmbedding(_word_piece(), embedding_dim=32)]}
    return SentenceTransformer(modules=[Router(routes, default_route="prose"), Normalize()])


def routers_that_disagree(folder):
    """A model with two routers. One has queries and documents, the other does not."""
    torch.manual_seed(13)
    query, document = ([StaticEmbedding(_word_piece(), embedding_dim=32)] for _ in range(2))
    other = Router({"a": [Normalize()], "b": [Dense(32, 32)]}, default_route="a")
    return SentenceTransformer(modules=[Router.for_query_document(query, document, default_route="document"), other])


def router_without_default(folder):
    query = [StaticEmbedding(_word_piece(), embedding_dim=32)]
    document = [StaticEmbedding(_word_piece(), embedding_dim=32)]
    router = Router({"query": query, "document": document}, default_route=None, allow_empty_key=False)
    return SentenceTransformer(modules=[router])


def _of_pieces(file: Path, config, tokenizer_class: str, **ids) -> SentenceTransformer:
    """Return a model whose tokenizer is a file in the format of the sentencepiece package."""
    _save_weights(file.parent, config, transformers.AutoModelForTextEncoding)
    with file.open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_corpus()), model_writer=model, vocab_size=500, num_threads=1, minloglevel=2, **ids
        )
    told = {"tokenizer_class": tokenizer_class, "model_max_length": WINDOW}
    file.with_name("tokenizer_config.json").write_text(json.dumps(told))
    return SentenceTransformer(modules=[Transformer(str(file.parent)), Pooling(32, "mean"), Normalize()])


def xlm_roberta_pieces(folder):
    """An XLM-RoBERTa with sentencepiece.bpe.model and without tokenizer.json."""
    config = transformers.XLMRobertaConfig(
        **SIZE, vocab_size=N_VOCABULARY, max_position_embeddings=WINDOW + 2, pad_token_id=1, type_vocab_size=1
    )
    return _of_pieces(folder / _PIECES[xlm_roberta_pieces], config, "XLMRobertaTokenizer")


def t5_pieces(folder):
    """The encoder of a T5 with spiece.model and without tokenizer.json."""
    # T5 does not scale its attention, so weights five times as large would cause large rounding errors.
    config = transformers.T5Config(
        vocab_size=N_VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, initializer_factor=0.2
    )
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    return _of_pieces(folder / _PIECES[t5_pieces], config, "T5Tokenizer", **ids)


# The tokenizer's file, below the folder that the function gets. `save` makes a model with this tokenizer file only.
_PIECES = {xlm_roberta_pieces: "xlm-roberta/sentencepiece.bpe.model", t5_pieces: "t5/spiece.model"}

SERVED = (
    bert_mean, bert_long_window, bert_small_window, bert_unnormalized, bert_several_poolings, bert_weighted_mean,
    bert_dense,
    bert_left_truncated, bert_default_prompt, bert_prompt_not_pooled, bert_truncated_dimensions, xlm_roberta_cls,
    mpnet_mean, modernbert_cls, modernbert_long_window, decoder_last_token, decoder_last_token_padded_right,
    static_embedding, router_with_default, bert_prompts, bert_prompts_not_pooled, bert_passage_prompt,
    bert_nameless_prompt, bert_short_queries, router_prompts, router_mappings, router_of_other_tasks,
    routers_that_disagree, xlm_roberta_pieces, t5_pieces,
)  # fmt: skip


# Models with a `query` and a `document` among their prompts.
PROMPTED = (bert_prompts, bert_prompts_not_pooled, router_prompts)


def save(make, folder: Path) -> Path:
    """Make a model with one of the functions above, and save it as a user would. Return its folder."""
    saved = folder / make.__name__
    make(folder).save(str(saved), create_model_card=False)
    if make in _PIECES:
        # sentence-transformers saves tokenizer.json instead of this file.
        shutil.copy(folder / _PIECES[make], saved)
        (saved / "tokenizer.json").unlink()
    return saved
