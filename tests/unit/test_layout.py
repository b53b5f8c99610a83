"""Texts of different lengths in padded rows, and packed into one."""

import numpy as np
import pytest

from embedding_api.engine.backends.layout import Joining, Packing, Padding, rounded_up


@pytest.mark.parametrize(
    ("padding", "ids", "mask"),
    [
        (Padding(9), [[1, 2, 3], [4, 9, 9]], [[1, 1, 1], [1, 0, 0]]),
        (Padding(9, is_left=True), [[1, 2, 3], [9, 9, 4]], [[1, 1, 1], [0, 0, 1]]),
        (Padding(0, step=4), [[1, 2, 3, 0], [4, 0, 0, 0]], [[1, 1, 1, 0], [1, 0, 0, 0]]),
        (Padding(9, step=4, window=3), [[1, 2, 3], [4, 9, 9]], [[1, 1, 1], [1, 0, 0]]),
    ],
)
def test_a_batch_is_filled_up_to_a_multiple_but_never_over_the_window(padding, ids, mask):
    made = padding([np.array([1, 2, 3]), np.array([4])])
    assert made.input_ids.tolist() == ids
    assert made.attention_mask.tolist() == mask
    assert padding.n_computed(2, 3, 4) == made.input_ids.size


def test_joined_texts_need_no_padding():
    made = Joining()([np.array([1, 2, 3]), np.array([4]), np.array([5])])
    assert made.input_ids.tolist() == [1, 2, 3, 4, 5]
    assert made.offsets.tolist() == [0, 3, 4]
    assert Joining().n_computed(3, 3, 5) == 5


def test_a_pack_holds_the_texts_one_behind_the_other():
    packing = Packing(9, first_position=2)
    made = packing([np.array([7, 2, 3]), np.array([4]), np.array([5, 6])])
    assert made.ids.tolist() == [[7, 2, 3, 4, 5, 6, *[9] * 10]]
    assert made.positions.tolist() == [[2, 3, 4, 2, 2, 3, *[2] * 10]]
    assert made.segments.tolist() == [[0, 0, 0, 1, 2, 2, *[-1] * 10]]
    assert packing.n_computed(3, 3, 6) == made.ids.size
    assert made.cells.shape == made.mask.shape == (3, 16)
    taken_apart = [made.ids[0][cells[mask == 1]].tolist() for cells, mask in zip(made.cells, made.mask, strict=True)]
    assert taken_apart == [[7, 2, 3], [4], [5, 6]]


def test_the_padding_token_is_not_counted_where_the_model_counts_from_padding_idx():
    """As in transformers for RoBERTa, even if a text itself contains the padding token."""
    made = Packing(1, first_position=2)([np.array([0, 5, 1, 6]), np.array([0, 1, 7])])
    assert made.positions[0, :7].tolist() == [2, 3, 1, 4, 2, 1, 3]


def test_lengths_of_packs_are_few_and_waste_little():
    lengths = [rounded_up(n) for n in range(1, 8193)]
    assert all(n <= length for n, length in enumerate(lengths, 1))
    assert all(length < n * 1.25 + 16 for n, length in enumerate(lengths, 1))
    assert len({length for length in lengths if length <= 256}) == 12
    assert all(length < n + 64 for n, length in enumerate(lengths, 1))
