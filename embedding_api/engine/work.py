"""What passes through the engine: token ids in, `Work` for a core, `Result` out. Imports numpy alone."""

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# Token ids of one text: int64, (n_tokens,).
Ids = npt.NDArray[np.int64]

# Vectors of several texts: float32, (n_texts, dim).
Vectors = npt.NDArray[np.float32]

# Values of one text or of several, in the dtype of their `Result`.
Values = npt.NDArray[Any]


class Address(NamedTuple):
    """A worker: its seat, and a generation that is higher than that of any worker before it."""

    seat: int
    generation: int


class Lane(NamedTuple):
    """Texts of one lane may be computed together.

    Attributes:
        backend: Index of their backend in the registry.
        n_prompt_tokens: Leading tokens of each text that pooling leaves out.
    """

    backend: int
    n_prompt_tokens: int


class Work(NamedTuple):
    """A batch for one core.

    Attributes:
        owner: The worker whose requests hold these texts.
        number: The owner's name for the batch.
        lane: What computes it.
        inputs: Token ids of each text, int64, (n_tokens,), n_tokens >= 1.
        is_alone: True if a core must not compute it together with other batches.
    """

    owner: Address
    number: int
    lane: Lane
    inputs: Sequence[Ids]
    is_alone: bool = False

    @property
    def n_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(map(len, self.inputs))

    @property
    def n_sent_ids(self) -> int:
        """Token ids in a message that holds this batch, with one number more for each text."""
        return self.n_tokens + len(self.inputs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Let pickle keep the token ids of all texts as one array of int32."""
        ids = np.concatenate(self.inputs).astype(np.int32).tobytes()
        return _unpickled, (self[:3], [len(ids) for ids in self.inputs], ids, self.is_alone)


def _unpickled(names: tuple[Address, int, Lane], lengths: list[int], data: bytes, is_alone: bool) -> Work:  # noqa: FBT001 - pickle passes it
    ids = np.frombuffer(data, np.int32).astype(np.int64)
    # Several times faster than np.split.
    ends = itertools.accumulate(lengths)
    return Work(*names, [ids[end - n : end] for n, end in zip(lengths, ends, strict=True)], is_alone)


class Undone(enum.IntEnum):
    """Why a worker did not compute a batch."""

    FAILED = 0
    HUNG = 1
    NOT_BEGUN = 2
    # It failed or hung together with other batches, of which any may be the cause.
    IN_COMPANY = 3


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What was computed for several texts.

    A dense vector is a row of `values`, (n_texts, dim); a score is an element, (n_texts,). Where texts have different
    numbers of rows, `offsets` says where each begins: a sparse vector has a row for each token of the vocabulary that
    it holds, of a structured dtype (index, weight); a matrix has a row for each of its text's tokens, (n_rows, dim).

    Attributes:
        values: Any dtype. (n_texts, ...) without offsets, (n_rows, ...) with them.
        offsets: int64, (n_texts + 1,): rows `offsets[i]` to `offsets[i + 1]` are text i's. None if each text has one.
    """

    values: Values
    offsets: Ids | None = None

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def __getitem__(self, text: int) -> Values:
        """Return the values of one text; a view."""
        if self.offsets is None:
            values: Values = self.values[text]
        else:
            values = self.values[self.offsets[text] : self.offsets[text + 1]]
        return values

    def split(self, sizes: Sequence[int]) -> list["Result"]:
        """Return the results of groups of texts, `sizes` texts each."""
        ends = list(itertools.accumulate(sizes))
        groups = [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        return [Result.gathered([(self, text) for text in group]) for group in groups]

    @classmethod
    def gathered(cls, rows: Sequence[tuple["Result", int]]) -> "Result":
        """Return the values of several texts, each from its own result.

        Args:
            rows: For each text the result that holds it, and its index there. All are ragged, or none is.
        """
        first, index = rows[0]
        if all(result is first for result, _ in rows) and first.offsets is None:
            indices = [row for _, row in rows]
            # The usual case, one request in one batch, costs no copy.
            if indices == list(range(index, index + len(rows))):
                return cls(first.values[index : index + len(rows)])
            return cls(first.values[indices])
        if first.offsets is None:
            return cls(np.stack([result.values[row] for result, row in rows]))
        parts = [result[row] for result, row in rows]
        return cls(np.concatenate(parts), np.cumsum([0, *map(len, parts)]))
