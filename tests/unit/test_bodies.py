"""Which body of a model computes a batch, and what it reads. `tests/model` computes with them."""

import numpy as np
import pytest

from embedding_api.engine.backends.bodies import Bodies
from embedding_api.engine.backends.layout import Packing, Padding


@pytest.mark.parametrize("window", [None, 512, 64, 50, 5])
def test_a_short_text_alone_is_padded_by_less_than_eight_tokens_within_the_window(window):
    bodies = Bodies(window)
    longest = min(window or 64, 64)
    for n_tokens in range(1, longest + 1):
        assert n_tokens <= bodies.length(1, n_tokens) < n_tokens + 8
        assert bodies.length(1, n_tokens) <= longest


@pytest.mark.parametrize(("n_texts", "n_tokens"), [(1, 65), (2, 2), (3, 64)])
def test_longer_and_several_texts_take_the_body_for_any_batch(n_texts, n_tokens):
    assert Bodies(None).length(n_texts, n_tokens) is None


@pytest.mark.parametrize("layout", [Packing(9, first_position=2), Padding(9, step=16)])
def test_a_static_body_reads_the_arrays_as_rows(layout):
    bodies, text = Bodies(None), np.array([5, 6, 7])
    arrays = layout([text], 8)
    length, rows, *rest = bodies.inputs(arrays, 8)
    assert length == 8
    assert rows.shape == (len(arrays), 64)
    assert rows[0, :8].tolist() == [5, 6, 7, 9, 9, 9, 9, 9]
    assert (rows[:, :8] == np.concatenate(arrays)).all()
    assert [array.shape for array in rest] == [(1, 1)] * len(arrays)


def test_the_body_for_any_batch_reads_the_arrays_as_they_are():
    arrays = Padding(9)([np.arange(70), np.arange(3)])
    length, rows, *rest = Bodies(None).inputs(arrays, None)
    assert length > 64
    assert not rows.any()
    assert all(one is other for one, other in zip(rest, arrays, strict=True))
