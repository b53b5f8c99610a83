"""Layouts: how the texts of a batch become the arrays that a model reads. Pure functions on arrays."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from embedding_api.engine.work import Ids

# The size at which batches fill a core of a CPU, in tokens that are computed, with every backend. 512 are up to
# 14 % faster, but need twice the memory; see docs/decisions/0004.
CPU_BATCH_TOKENS = 256


class PaddedRows(NamedTuple):
    """One row for each text. The names are those of a Transformer's features.

    Attributes:
        input_ids: int64, (n_texts, length).
        attention_mask: int64, the same shape; 1 for a token of the text, 0 for padding.
    """

    input_ids: Ids
    attention_mask: Ids


class Padding(NamedTuple):
    """A row for each text, padded to the longest, as sentence-transformers does it. The model computes padding in vain.

    Attributes:
        pad_id: The token id of padding.
        is_left: True if padding stands before the text.
        step: The length of the rows is a multiple of this number.
        window: The most tokens of a row, before `step`; None for no limit.
    """

    pad_id: int
    is_left: bool = False
    step: int = 1
    window: int | None = None

    def __call__(self, batch: Sequence[Ids], length: int | None = None) -> PaddedRows:
        """Return the rows of a batch.

        Args:
            batch: Texts, int64, (n_tokens,) each.
            length: The length of the rows; None for the next multiple of `step`.
        """
        length = length or self._length(max(map(len, batch)))
        ids = np.full((len(batch), length), self.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(batch):
            columns = slice(length - len(text), None) if self.is_left else slice(len(text))
            ids[row, columns] = text
            mask[row, columns] = 1
        return PaddedRows(ids, mask)

    def n_computed(self, n_texts: int, longest: int, n_tokens: int) -> int:  # noqa: ARG002 - see Backend
        """See `Backend.n_computed`."""
        return n_texts * self._length(longest)

    def _length(self, longest: int) -> int:
        length = -(-longest // self.step) * self.step
        return length if self.window is None else max(longest, min(length, self.window))


class JoinedRow(NamedTuple):
    """The ids of all texts in one array. The names are those of a StaticEmbedding's features.

    Attributes:
        input_ids: int64, (n_tokens,).
        offsets: Where each text begins, int64, (n_texts,).
    """

    input_ids: Ids
    offsets: Ids


class Joining(NamedTuple):
    """All texts one after the other, without padding, for a module that looks each token up by itself."""

    def __call__(self, batch: Sequence[Ids]) -> JoinedRow:
        """Return the joined ids of a batch of texts, int64, (n_tokens,) each."""
        return JoinedRow(np.concatenate(batch), np.cumsum([0, *map(len, batch[:-1])]))

    def n_computed(self, n_texts: int, longest: int, n_tokens: int) -> int:  # noqa: ARG002 - see Backend
        """See `Backend.n_computed`."""
        return n_tokens


class PackedRow(NamedTuple):
    """All texts in one row, and the indices that turn the row into one row for each text again.

    Attributes:
        ids: int64, (1, length).
        positions: The position of each token in its text, int64, (1, length).
        segments: The number of the text that a token belongs to, int64, (1, length); -1 for padding.
        cells: The column of each token of a text, int64, (n_texts, longest).
        mask: int64, the same shape; 1 where the text has such a token.
    """

    ids: Ids
    positions: Ids
    segments: Ids
    cells: Ids
    mask: Ids


class Packing(NamedTuple):
    """All texts in one row, each of which attends to itself alone. Only the end of the row is padding.

    The row has one of a few lengths, since OpenVINO compiles each new length, and needs more time when it changes.

    Attributes:
        pad_id: The token id of padding.
        first_position: The number that the model gives to the first position of a text.
    """

    pad_id: int
    first_position: int

    def __call__(self, batch: Sequence[Ids], length: int | None = None) -> PackedRow:
        """Return the row of a batch.

        Args:
            batch: Texts, int64, (n_tokens,) each.
            length: The length of the row and the most tokens of a text; None for the next allowed lengths.
        """
        lengths = np.array([len(text) for text in batch])
        starts = np.cumsum(lengths) - lengths
        n_tokens, longest = int(lengths.sum()), int(lengths.max())
        ids = np.full((1, length or rounded_up(n_tokens)), self.pad_id, dtype=np.int64)
        positions = np.full_like(ids, self.first_position)
        segments = np.full_like(ids, -1)
        ids[0, :n_tokens] = np.concatenate(batch)
        positions[0, :n_tokens] = self._positions(ids[0, :n_tokens], starts, lengths)
        segments[0, :n_tokens] = np.repeat(np.arange(len(batch)), lengths)
        columns = np.arange(length or rounded_up(longest))
        mask = columns < lengths[:, None]
        return PackedRow(ids, positions, segments, np.where(mask, starts[:, None] + columns, 0), mask.astype(np.int64))

    def n_computed(self, n_texts: int, longest: int, n_tokens: int) -> int:  # noqa: ARG002 - see Backend
        """See `Backend.n_computed`."""
        return rounded_up(n_tokens)

    def _positions(self, ids: Ids, starts: Ids, lengths: Ids) -> Ids:
        """Return the position of each token in its text, int64, the shape of `ids`."""
        if not self.first_position:
            return np.arange(len(ids)) - np.repeat(starts, lengths)
        # RoBERTa and its relatives count positions from padding_idx + 1. A token with the id padding_idx gets the
        # position padding_idx and is not counted, even where a text spells that token out.
        padding_idx = self.first_position - 1
        is_counted = ids != padding_idx
        counted = np.cumsum(is_counted)
        before = (counted - is_counted)[starts]
        positions: Ids = padding_idx + (counted - np.repeat(before, lengths)) * is_counted
        return positions


def rounded_up(n_tokens: int) -> int:
    """Return the next allowed length: 16, 32, 48, 64, then four to each power of two: 80, 96, 112, 128, 160 ...

    Steps below 16 would not pay: each change of size costs a millisecond, more than the saved padding. From 256 on the
    step is 64: such a row is one long text, and the cost of its attention grows with the square of the length.
    """
    step = min(64, max(16, 1 << max(0, (n_tokens - 1).bit_length() - 3)))
    return -(-n_tokens // step) * step
