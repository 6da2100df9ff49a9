"""How the operands of an operation are read: the matrix of its weight, the rows of its input."""

import math
from typing import Any

from lowbit.core.rows import RowView, Window, order_of

from .graph import Operation
from .kinds import Picked, Weight


def row_view(op: Operation, index: int) -> RowView | None:
    """Returns how operand ``index`` is read as rows ``[matrix, row, K]``; None for a weight, and for what has no such form.

    No form have: indices of look-ups, an image that is a weight, a convolution with batch groups, and an input whose
    weight is a part of its leaf along the contraction.
    """
    if op.is_lookup or op.weight == index:
        return None
    eqn = op.eqn
    if eqn.primitive.name == "dot_general":
        contract, batch = (numbers[index] for numbers in eqn.params["dimension_numbers"])
        if op.weight is None:  # two activations: what is batch and what are heads nobody says
            sizes = tuple((eqn.invars[index].aval.shape[i],) for i in sorted(contract))
            return RowView((), tuple(sorted(contract)), sizes, (), tuple(range(len(sizes))))
        other_contract, other_batch = (numbers[op.weight] for numbers in eqn.params["dimension_numbers"])
        found = _parts(op, (*other_batch, *other_contract))
        if found is None:
            return None
        parts, leaf_axes = found
        outer = sum(len(part) for part in parts[: len(batch)])
        return RowView(tuple(batch), tuple(contract), parts, order_of(leaf_axes[:outer]), order_of(leaf_axes[outer:]))
    return _patches(op, index)


def _patches(op: Operation, index: int) -> RowView | None:
    params = op.eqn.params
    numbers = params["dimension_numbers"]
    if index != 0 or params["batch_group_count"] != 1 or op.weight != 1:
        return None
    found = _parts(op, tuple(numbers.rhs_spec[1:]))
    if found is None:
        return None
    parts, leaf_axes = found
    kernel = op.eqn.invars[1].aval.shape
    window = Window(
        tuple(numbers.lhs_spec),
        tuple(kernel[i] for i in numbers.rhs_spec[2:]),
        tuple(params["window_strides"]),
        tuple((int(a), int(b)) for a, b in params["padding"]),
        tuple(params["lhs_dilation"]),
        tuple(params["rhs_dilation"]),
        params["feature_group_count"],
    )
    return RowView((), (), parts, (), order_of(leaf_axes), window)


def _parts(op: Operation, axes: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]] | None:
    """Of axes of the weight, as the operation has it: the lengths of the leaf's axes in each, and those axes."""
    assert op.weight is not None
    kind, shape = op.kinds[op.weight], op.eqn.invars[op.weight].aval.shape
    if not isinstance(kind, Weight | Picked):
        return tuple((shape[i],) for i in axes), axes
    parts, leaf_axes = [], []
    for i in axes:
        atoms: Any = kind.axes[i]
        if math.prod(n for _, n in atoms) != shape[i]:
            return None
        parts.append(tuple(n for _, n in atoms))
        leaf_axes += [axis for axis, _ in atoms]
    if len(set(leaf_axes)) != len(leaf_axes) or any(axis < 0 for axis in leaf_axes):
        return None
    return tuple(parts), tuple(leaf_axes)
