"""Texts of different lengths as one rectangle, which is what a Transformer reads."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from embedding_api.engine.arrays import Ids


class Rectangle(NamedTuple):
    """A batch, padded.

    Attributes:
        ids: int64, (n_texts, length).
        mask: int64, the same shape; 1 where there is text, 0 where there is padding.
    """

    ids: Ids
    mask: Ids


class Padding(NamedTuple):
    """How a model's batches are padded.

    Attributes:
        pad_id: The id that fills up.
        is_left: Whether it stands before a text, not behind it.
        step: The length of a batch is a multiple of this,
        window: but at most this, if the model has a window.
    """

    pad_id: int
    is_left: bool = False
    step: int = 1
    window: int | None = None

    def __call__(self, batch: Sequence[Ids]) -> Rectangle:
        """Pads texts, int64, (n_tokens,) each, to the same length."""
        longest = max(map(len, batch))
        length = -(-longest // self.step) * self.step
        if self.window is not None:
            length = max(longest, min(length, self.window))
        ids = np.full((len(batch), length), self.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(batch):
            real = slice(length - len(text), None) if self.is_left else slice(len(text))
            ids[row, real] = text
            mask[row, real] = 1
        return Rectangle(ids, mask)
