"""What a plan says of an operation's operands: their shapes, where the axes of leaves are, and how the two meet."""

from typing import Any

from lowbit.plan.geometry import Convolution, Dot, Geometry, Lookup

from .kinds import Picked, Weight, contraction, makers
from .operations import Inventory, Operation


def geometry(op: Operation) -> Geometry:
    """Returns how the operands of an operation meet."""
    params = op.eqn.params
    if op.is_lookup:
        return Lookup(tuple(int(i) for i in op.picked))
    if op.eqn.primitive.name == "dot_general":
        contract, batch = params["dimension_numbers"]
        return Dot(_pair(contract), _pair(batch))
    numbers = params["dimension_numbers"]
    return Convolution(
        *(_ints(spec) for spec in (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)),
        strides=_ints(params["window_strides"]),
        padding=tuple((int(low), int(high)) for low, high in params["padding"]),
        lhs_dilation=_ints(params["lhs_dilation"]),
        rhs_dilation=_ints(params["rhs_dilation"]),
        feature_groups=int(params["feature_group_count"]),
        batch_groups=int(params["batch_group_count"]),
    )


def shape_of(op: Operation, index: int) -> tuple[int | None, ...]:
    """Returns the shape of an operand in one layer, None along the axis that counts examples: `lowbit.plan.rows.Site.shape`."""
    shape = op.eqn.invars[index].aval.shape
    examples = _examples(op, index)
    return tuple(n if isinstance(n, int) and i != examples else None for i, n in enumerate(shape))


def _examples(op: Operation, index: int) -> int | None:
    """The axis of an operand that counts examples."""
    if index == op.weight:
        return None
    if op.is_lookup:
        return 0
    params, rank = op.eqn.params, len(op.eqn.invars[index].aval.shape)
    if op.eqn.primitive.name != "dot_general":
        return params["dimension_numbers"][index][0]
    batch = params["dimension_numbers"][1][index]
    if op.weight is None and batch:
        return batch[0]
    gone = {*contraction(op.eqn, index), *batch}
    return next((i for i in range(rank) if i not in gone), None)


def axes_of(op: Operation, index: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Returns which axes of its leaf make up every axis of an operand: `lowbit.plan.rows.Site.axes`."""
    kind = op.kinds[index]
    return kind.axes if isinstance(kind, Weight | Picked) else ()


def flipped_of(op: Operation, index: int) -> tuple[int, ...]:
    """Returns the axes of its leaf that an operand has in reversed order: `lowbit.plan.rows.Site.flipped`."""
    kind = op.kinds[index]
    return tuple(sorted(kind.flipped)) if isinstance(kind, Weight) else ()


def cuts_of(op: Operation, index: int) -> tuple[tuple[int, int, int], ...]:
    """Returns what an operand takes of axes of its leaf that slices cut: `lowbit.plan.rows.Site.cuts`."""
    kind = op.kinds[index]
    return kind.cuts if isinstance(kind, Weight) else ()


def producers_of(inventory: Inventory) -> dict[str, tuple[str, ...]]:
    """Returns the operations that feed every operation, nearest upstream, in program order."""
    place = {op.address: i for i, op in enumerate(inventory.operations)}
    return {
        op.path: tuple(inventory.operations[i].path for i in sorted(place[a] for a in makers(op.kinds) if a in place))
        for op in inventory.operations
    }


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in values)


def _pair(pair: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    left, right = pair
    return _ints(left), _ints(right)
