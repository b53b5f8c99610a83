"""One OpenVINO model with a body for each of a few short texts' lengths, beside the body for any batch.

OpenVINO prepares a model anew for each batch whose shape differs from the one before, unless all its shapes are static.
The bodies of an `If` share one copy of the weights, which several compiled models would not.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embedding_api.engine.work import Ids

if TYPE_CHECKING:
    import openvino

# A text is padded by less than this number of tokens, up to the longest body.
_STEP, _LONGEST = 8, 64

# A length above all others, for the body for any batch. OpenVINO computes with 32 bits.
_ANY = 1 << 30

# The names of the inputs that choose a body and that a static body reads.
_LENGTH, _ROWS = "length", "rows"


class _Body(NamedTuple):
    """A model, and its parameters by name."""

    model: "openvino.Model"
    parameters: Mapping[str, Any]


class Bodies:
    """The lengths of the static bodies, and what the whole model reads.

    Args:
        window: The most tokens of a text; None for no limit.

    Attributes:
        lengths: The tokens of a text in each static body, ascending.
    """

    def __init__(self, window: int | None) -> None:
        longest = min(window or _LONGEST, _LONGEST)
        self.lengths = sorted({min(length, longest) for length in range(_STEP, longest + _STEP, _STEP)})

    def length(self, n_texts: int, n_tokens: int) -> int | None:
        """Return the length of the body that computes a batch; None if it is the body for any batch."""
        if n_texts > 1 or n_tokens > self.lengths[-1]:
            return None
        return next(length for length in self.lengths if length >= n_tokens)

    def model(self, model: "openvino.Model") -> "openvino.Model":
        """Return a model that chooses among the bodies.

        Args:
            model: Reads arrays of two dimensions, int64, each with one row for one text.
        """
        static = _choice(model, self.lengths, self.lengths[-1])
        return _either(static, _any_batch(model), at_most=self.lengths[-1]).model

    def inputs(self, arrays: Sequence[Ids], length: int | None) -> list[Ids]:
        """Return what the whole model reads.

        Args:
            arrays: The arrays of a batch, each (1, length) for a static body.
            length: See `length`.
        """
        rows = np.zeros((len(arrays), self.lengths[-1]), dtype=np.int64)
        if length is None:
            return [np.array(_ANY), rows, *arrays]
        rows[:, :length] = np.concatenate(arrays)
        return [np.array(length), rows, *[array[:, :1] for array in arrays]]


def _choice(model: "openvino.Model", lengths: Sequence[int], longest: int) -> _Body:
    """Return a tree of the static bodies, which compiles twice as fast as a chain."""
    if len(lengths) == 1:
        return _static(model, lengths[0], longest)
    middle = len(lengths) // 2
    shorter, longer = (_choice(model, part, longest) for part in (lengths[:middle], lengths[middle:]))
    return _either(shorter, longer, at_most=lengths[middle - 1])


def _either(shorter: _Body, longer: _Body, *, at_most: int) -> _Body:
    """Return a body that is one of two, by the length."""
    import openvino
    from openvino import opset13 as ops

    length = _parameter(_LENGTH, openvino.PartialShape([]))
    parameters = {_LENGTH: length}
    condition = ops.less_equal(length, ops.constant(at_most, dtype=np.int64))
    either = ops.if_op(condition)
    # The function above forgets it.
    either.set_argument(0, condition.output(0))
    either.set_then_body(shorter.model)
    either.set_else_body(longer.model)
    for name in dict.fromkeys([_LENGTH, _ROWS, *shorter.parameters, *longer.parameters]):
        inner = [body.parameters.get(name) for body in (shorter, longer)]
        if any(parameter is not None for parameter in inner):
            shape = next(parameter for parameter in inner if parameter is not None).get_partial_shape()
            outer = parameters.setdefault(name, _parameter(name, shape))
            either.set_input(outer.output(0), *inner)
    output = either.set_output(*(body.model.get_results()[0] for body in (shorter, longer)))
    return _Body(openvino.Model([ops.result(output)], list(parameters.values())), parameters)


def _any_batch(model: "openvino.Model") -> _Body:
    clone = model.clone()
    return _Body(clone, {port.get_any_name(): port.get_node() for port in clone.inputs})


def _static(model: "openvino.Model", length: int, longest: int) -> _Body:
    """Return the body that reads the first `length` columns of `rows`, of which each array is one."""
    import openvino
    from openvino import opset13 as ops

    clone = model.clone()
    n_arrays = len(clone.inputs)
    clone.reshape({port: openvino.PartialShape([1, length]) for port in clone.inputs})
    rows = _parameter(_ROWS, openvino.PartialShape([n_arrays, longest]))
    for index, port in enumerate(clone.inputs):
        corners = ([index, 0], [index + 1, length], [1, 1])
        array = ops.slice(rows, *(ops.constant(corner, dtype=np.int64) for corner in corners))
        for target in port.get_target_inputs():
            target.replace_source_output(array.output(0))
    return _Body(openvino.Model(clone.get_results(), [rows]), {_ROWS: rows})


def _parameter(name: str, shape: "openvino.PartialShape") -> Any:
    from openvino import opset13 as ops

    parameter = ops.parameter(shape, np.int64)
    parameter.output(0).set_names({name})
    return parameter
