"""Messages between workers as bytes, for sockets that keep each message whole."""

import json
import math
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from embedding_api.engine.work import Address, Ids, Lane, Result, Undone, Work

# Kind of message; seat and generation of the sender; generation of the receiver; number of the batch; two numbers that
# depend on the kind.
_HEADER = struct.Struct("=BHQQQII")
_WAKE, _WORK, _PIECE, _RETURNED = range(4)
# Bytes of a result's description.
_SIZE = struct.Struct("=I")


class Woken(NamedTuple):
    """Another worker accepts a batch, or a worker is gone."""


class Piece(NamedTuple):
    """Some bytes of the result of a batch that another worker computed.

    Attributes:
        worker: The worker that computed it.
        number: The owner's name for the batch.
        start: Where these bytes belong.
        n_bytes: Bytes of the whole result.
        data: These bytes.
    """

    worker: Address
    number: int
    start: int
    n_bytes: int
    data: memoryview


class Returned(NamedTuple):
    """A batch that was sent to another worker will not be computed there.

    Attributes:
        worker: The worker that had it.
        number: The owner's name for the batch.
        why: The reason.
    """

    worker: Address
    number: int
    why: Undone


def wake(sender: Address) -> bytes:
    """Return the message that lets any worker look at the board."""
    return _HEADER.pack(_WAKE, *sender, 0, 0, 0, 0)


def work(batch: Work, to: Address) -> bytes:
    """Return the message with a batch for another worker."""
    inputs = batch.inputs
    body = np.concatenate([[len(inputs)], [len(ids) for ids in inputs], *inputs]).astype(np.int32).tobytes()
    return _HEADER.pack(_WORK, *batch.owner, to.generation, batch.number, *batch.lane) + body


def max_sent_ids(max_message: int) -> int:
    """Return the most token ids of a batch that fit into a message, with one number more for each text."""
    return (max_message - _HEADER.size) // 4 - 1


def pieces(batch: Work, result: Result, sender: Address, max_message: int) -> Iterator[bytes]:
    """Yield the messages with the result of a batch for its owner."""
    data = _to_bytes(result)
    step = max_message - _HEADER.size
    for start in range(0, len(data), step):
        header = _HEADER.pack(_PIECE, *sender, batch.owner.generation, batch.number, start, len(data))
        yield header + data[start : start + step]


def returned(batch: Work, why: Undone, sender: Address) -> bytes:
    """Return the message that tells the owner of a batch that it is not computed."""
    return _HEADER.pack(_RETURNED, *sender, batch.owner.generation, batch.number, why, 0)


def parse(message: memoryview, generation: int) -> Woken | Work | Piece | Returned | None:
    """Return what a message says; None if it was for an earlier worker with the same seat.

    Args:
        message: As one of the functions above made it. `Piece.data` is a part of it, no copy.
        generation: Of the worker that reads it.
    """
    kind, seat, sender_generation, to_generation, number, first, second = _HEADER.unpack_from(message)
    if kind == _WAKE:
        return Woken()
    if to_generation != generation:
        return None
    sender, body = Address(seat, sender_generation), message[_HEADER.size :]
    if kind == _WORK:
        return Work(sender, number, Lane(first, second), _inputs(body))
    if kind == _PIECE:
        return Piece(sender, number, first, second, body)
    return Returned(sender, number, Undone(first))


class Assembly:
    """A result of which pieces come.

    Args:
        n_bytes: Bytes of the whole result.
    """

    def __init__(self, n_bytes: int) -> None:
        self._data = bytearray(n_bytes)
        self._n_missing = n_bytes

    def add(self, piece: Piece) -> Result | None:
        """Return the result once all pieces are there."""
        self._data[piece.start : piece.start + len(piece.data)] = piece.data
        self._n_missing -= len(piece.data)
        return None if self._n_missing else _from_bytes(self._data)


def _inputs(body: memoryview) -> list[Ids]:
    """Return the token ids of each text of a batch, int64, (n_tokens,)."""
    numbers = np.frombuffer(body, dtype=np.int32).astype(np.int64)
    n_texts = int(numbers[0])
    ends = np.cumsum(numbers[1 : n_texts + 1])
    return np.split(numbers[n_texts + 1 :], ends[:-1])


def _to_bytes(result: Result) -> bytes:
    """Return the dtype, shape and number of offsets in JSON, then the offsets, then the values."""
    values, offsets = result.values, result.offsets
    dtype = values.dtype.descr if values.dtype.names else values.dtype.str
    description = json.dumps([dtype, values.shape, 0 if offsets is None else len(offsets)]).encode()
    # What follows must begin at a multiple of eight bytes, or its numbers would be read slowly.
    description += b" " * (-(_SIZE.size + len(description)) % 8)
    numbers = b"" if offsets is None else offsets.tobytes()
    return b"".join([_SIZE.pack(len(description)), description, numbers, values.tobytes()])


def _from_bytes(data: bytearray) -> Result:
    (size,) = _SIZE.unpack_from(data)
    start = _SIZE.size + size
    dtype, shape, n_offsets = json.loads(data[_SIZE.size : start])
    offsets = np.frombuffer(data, np.int64, n_offsets, start).copy() if n_offsets else None
    fields = dtype if isinstance(dtype, str) else [tuple(field) for field in dtype]
    values = np.frombuffer(data, np.dtype(fields), math.prod(shape), start + 8 * n_offsets).reshape(shape)
    return Result(values, offsets)
