"""How the texts of a batch lie side by side: in rows that are padded to the longest, or packed into one row."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from embedding_api.engine.work import Ids


class Layout(Protocol):
    """What a backend makes of a batch before it computes."""

    def __call__(self, batch: Sequence[Ids]) -> Sequence[Ids]:
        """The arrays that the model reads, int64, for texts of int64, (n_tokens,) each."""

    def n_computed(self, n_texts: int, longest: int, n_tokens: int) -> int:
        """Tokens that are computed for a batch, what fills it up included.

        Args:
            n_texts: In the batch.
            longest: Tokens of its longest text.
            n_tokens: Of all its texts.
        """


class Rows(NamedTuple):
    """A batch in padded rows.

    Attributes:
        ids: int64, (n_texts, length).
        mask: int64, the same shape; 1 where there is text, 0 where there is padding.
    """

    ids: Ids
    mask: Ids


class Padding(NamedTuple):
    """A row for each text, as sentence-transformers does it; what is padded is computed in vain.

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

    def __call__(self, batch: Sequence[Ids]) -> Rows:
        """See `Layout`."""
        length = self._length(max(map(len, batch)))
        ids = np.full((len(batch), length), self.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(batch):
            real = slice(length - len(text), None) if self.is_left else slice(len(text))
            ids[row, real] = text
            mask[row, real] = 1
        return Rows(ids, mask)

    def n_computed(self, n_texts: int, longest: int, n_tokens: int) -> int:  # noqa: ARG002 - see Layout
        """See `Layout`."""
        return n_texts * self._length(longest)

    def _length(self, longest: int) -> int:
        length = -(-longest // self.step) * self.step
        return length if self.window is None else max(longest, min(length, self.window))


class Pack(NamedTuple):
    """A batch in one row, one text behind the other, and how to take it apart again.

    Attributes:
        ids: int64, (1, length).
        positions: Of each token in its text, int64, (1, length).
        segments: Which text a token belongs to, int64, (1, length); -1 behind the last one.
        cells: Where each text's tokens are in the row, int64, (n_texts, longest).
        mask: int64, the same shape; 1 where there is such a token.
    """

    ids: Ids
    positions: Ids
    segments: Ids
    cells: Ids
    mask: Ids


class Packing(NamedTuple):
    """All texts in one row, in which each looks at itself alone: hardly anything is computed in vain.

    The row's length is one of few: OpenVINO compiles for each new one, and takes longer where it changes.

    Attributes:
        pad_id: The id that fills up.
        first_position: What the model calls the first position of a text.
    """

    pad_id: int
    first_position: int

    def __call__(self, batch: Sequence[Ids]) -> Pack:
        """See `Layout`."""
        lengths = np.array([len(text) for text in batch])
        starts = np.cumsum(lengths) - lengths
        n_tokens, longest = int(lengths.sum()), int(lengths.max())
        ids = np.full((1, rounded_up(n_tokens)), self.pad_id, dtype=np.int64)
        positions = np.full_like(ids, self.first_position)
        segments = np.full_like(ids, -1)
        ids[0, :n_tokens] = np.concatenate(batch)
        positions[0, :n_tokens] = self._positions(ids[0, :n_tokens], starts, lengths)
        segments[0, :n_tokens] = np.repeat(np.arange(len(batch)), lengths)
        columns = np.arange(rounded_up(longest))
        mask = columns < lengths[:, None]
        return Pack(ids, positions, segments, np.where(mask, starts[:, None] + columns, 0), mask.astype(np.int64))

    def n_computed(self, n_texts: int, longest: int, n_tokens: int) -> int:  # noqa: ARG002 - see Layout
        """See `Layout`."""
        return rounded_up(n_tokens)

    def _positions(self, ids: Ids, starts: Ids, lengths: Ids) -> Ids:
        """Of each token in its text, int64, the shape of `ids`."""
        if not self.first_position:
            return np.arange(len(ids)) - np.repeat(starts, lengths)
        # RoBERTa and its kin count from padding_idx on, and what padding_idx stands for does not count, not even where
        # a text spells it out.
        padding_idx = self.first_position - 1
        is_counted = ids != padding_idx
        counted = np.cumsum(is_counted)
        before = (counted - is_counted)[starts]
        positions: Ids = padding_idx + (counted - np.repeat(before, lengths)) * is_counted
        return positions


def rounded_up(n_tokens: int) -> int:
    """The next of few lengths: 16, 32, 48, 64, then four to each power of two: 80, 96, 112, 128, 160 ...

    No finer below 64: one more size costs a millisecond whenever it follows another, and more than it saves. From 256
    on multiples of 64: such a row is one long text, whose attention grows with the square of what is added.
    """
    step = min(64, max(16, 1 << max(0, (n_tokens - 1).bit_length() - 3)))
    return -(-n_tokens // step) * step
