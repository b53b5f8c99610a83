"""Texts of different lengths as one rectangle."""

import numpy as np
import pytest

from embedding_api.engine.backends.padding import Padding


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
    assert made.ids.tolist() == ids
    assert made.mask.tolist() == mask
