"""What a value is, by data flow: a parameter that was moved, computed from parameters, or data.

* What depends on an argument is data: the state of a model and its PRNG keys are arguments. So is what a callback
  brings in, and what a loop leaves behind whose number of turns depends on data.
* A part of a parameter that data picks is data as well: `Picked` while it can still be a weight of its own.
* The counter of a loop and the index of a device depend on no data, but differ from turn to turn and from device to
  device: ``varies``. A parameter moved by them is a weight; what is computed with them cannot be computed once.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from lowbit.program import primitives
from lowbit.program.eqn import Eqn
from lowbit.program.read import Equation

from . import moves

Address = tuple[int, ...]
"""Where an equation is: equation index, body index, equation index, ..., equation index."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """A parameter leaf, moved.

    Attributes:
        leaf: which.
        axes: where its axes are now.
        varies: whether it was moved by what differs from turn to turn or from device to device.
        flipped: axes of the leaf whose elements are in reversed order now.
        cuts: what is left of axes of the leaf that slices cut, as far as they say.
    """

    leaf: int
    axes: moves.Axes
    varies: bool = False
    flipped: frozenset[int] = frozenset()
    cuts: moves.Cuts = ()


@dataclasses.dataclass(frozen=True)
class Derived:
    """A value computed from these leaves (none: from constants alone).

    Attributes:
        leaves: which.
        varies: whether it differs from turn to turn of a loop or from device to device.
    """

    leaves: frozenset[int] = frozenset()
    varies: bool = False


@dataclasses.dataclass(frozen=True)
class Data:
    """A value that depends on the arguments.

    Attributes:
        near: paths of the nearest upstream weights.
        is_mixed: whether a whole parameter was combined with it since the last operation.
        is_spread: whether it was broadcast since the last operation.
        makers: where the operations are that it is computed from, nearest upstream.
        factors: leaves that it is the product with, element by element, moved at most since.
        drawn: where the look-ups are, if it is computed from what data picked from parameters and from nothing else of data.
    """

    near: frozenset[str] = frozenset()
    is_mixed: bool = False
    is_spread: bool = False
    makers: frozenset[Address] = frozenset()
    factors: frozenset[int] = frozenset()
    drawn: frozenset[Address] = frozenset()


@dataclasses.dataclass(frozen=True)
class Picked(Data):
    """A part of a leaf that data picks, moved: a weight where an operation takes it as one, else what a look-up makes.

    Attributes:
        leaf: which.
        axes: where its axes are now; those that count what was picked have numbers below 0.
        picks: where the look-ups are.
    """

    leaf: int = 0
    axes: moves.Axes = ()
    picks: frozenset[Address] = frozenset()


Kind = Weight | Derived | Data


def leaves_of(kind: Kind) -> frozenset[int]:
    """Returns the leaves that a value other than data is made of; none of data."""
    if isinstance(kind, Weight):
        return frozenset([kind.leaf])
    return kind.leaves if isinstance(kind, Derived) else frozenset()


def makers(kinds: Iterable[Kind]) -> frozenset[Address]:
    """Returns where the operations are that any of these is computed from, nearest upstream."""
    return frozenset().union(*(k.makers for k in kinds if isinstance(k, Data)))


def drawn(kinds: Iterable[Kind]) -> frozenset[Address]:
    """Returns the look-ups of what is computed from these; none where any is other data than what was picked."""
    data = [k for k in kinds if isinstance(k, Data)]
    return frozenset().union(*(k.drawn for k in data)) if all(k.drawn for k in data) else frozenset()


def computed(kind: Kind) -> Kind:
    """Returns a weight as the result of a computation: what `lowbit.interpret.compat.INLINED` does not hold returns it."""
    return Derived(leaves_of(kind), kind.varies) if isinstance(kind, Weight) else kind


def varies(kinds: Iterable[Kind]) -> bool:
    """Returns whether any of these differs from turn to turn of a loop or from device to device."""
    return any(not isinstance(k, Data) and k.varies for k in kinds)


def turning(kind: Kind) -> Kind:
    """Returns a kind as one that differs from turn to turn."""
    return kind if isinstance(kind, Data) else dataclasses.replace(kind, varies=True)


def left_behind(kinds: Iterable[Kind], *, is_data: bool) -> list[Kind]:
    """Returns what a branch or a loop leaves behind that data chooses, or that is run as often as data says."""
    if not is_data:
        return list(kinds)
    return [k if isinstance(k, Data) else Data(is_mixed=bool(leaves_of(k))) for k in kinds]


def layer_of(kind: Kind) -> Kind | None:
    """Returns the kind of one slice of a scanned operand; None where what was picked has no slices that are a weight."""
    if not isinstance(kind, Weight | Picked):
        return kind
    is_leading = _leads(kind.axes)
    if isinstance(kind, Weight):
        derived = Derived(frozenset([kind.leaf]), kind.varies)
        return dataclasses.replace(kind, axes=kind.axes[1:]) if is_leading else derived
    is_counted = all(axis < 0 for axis, _ in kind.axes[0])
    return dataclasses.replace(kind, axes=kind.axes[1:]) if is_leading or is_counted else None


def is_layered(kind: Kind) -> bool:
    """Returns whether the slices of a scanned operand are layers of parameters: what data picked in turn is none."""
    return _leads(kind.axes) if isinstance(kind, Picked) else bool(leaves_of(kind))


def _leads(axes: moves.Axes) -> bool:
    """Whether the first axis is a whole one of a leaf, before those that the others are of."""
    first, rest = (axes[0], axes[1:]) if axes else ((), ())
    later = {axis for group in rest for axis, _ in group if axis >= 0}
    return len(first) == 1 and first[0][0] >= 0 and all(first[0][0] < axis for axis in later)


def join(options: Sequence[Kind]) -> Kind:
    """Returns what a value is that may be any of these."""
    if all(k == options[0] for k in options):
        return options[0]
    if any(isinstance(k, Data) for k in options):
        data = [k for k in options if isinstance(k, Data)]
        near = frozenset().union(*(k.near for k in data))
        return Data(near, any(k.is_mixed for k in data), makers=makers(data), drawn=drawn(data))
    return Derived(frozenset().union(*(leaves_of(k) for k in options)), varies(options))


def carried(before: Kind, after: Kind, *, is_layers: bool = False) -> Kind:
    """Returns what a loop carries that starts as one kind and comes back as another.

    Of parameters it varies from turn to turn, but that over layers what is computed with it is computed for each.
    """
    if isinstance(before, Data) or isinstance(after, Data):
        return join([before, after])
    return Derived(leaves_of(before) | leaves_of(after), not is_layers or varies([before, after]))


def combine(equation: Equation, kinds: Sequence[Kind]) -> Kind:
    """Returns the kind of an equation's results from the kinds of its operands."""
    data = [k for k in kinds if isinstance(k, Data)]
    name = equation.name
    if not data:
        if equation.eqn.effects:  # what a callback or a mutable array brings in is no parameter
            return Data()
        return Derived(frozenset().union(*(leaves_of(k) for k in kinds)), varies(kinds) or name == "axis_index")
    near = frozenset().union(*(k.near for k in data))
    mixed = any(k.is_mixed for k in data)
    spread = any(k.is_spread for k in data)
    out = equation.outs[0].shape if equation.outs else ()
    if name == "broadcast_in_dim" and equation.ins[0].shape != out:
        spread = spread or is_smaller(equation.ins[0].shape, out)
    whole = [
        k
        for k, v in zip(kinds, equation.ins, strict=True)
        if not isinstance(k, Data) and leaves_of(k) and v.shape == out and sum(n > 1 for n in out) >= 2
    ]
    fewer = any(isinstance(k, Data) and is_smaller(v.shape, out) for k, v in zip(kinds, equation.ins, strict=True))
    is_chosen = name == "select_n" and not any(isinstance(k, Data) for k in kinds[1:])
    is_joined = name in primitives.ARITHMETIC or name == "select_n"
    if whole and is_joined and (spread or fewer or is_chosen):
        mixed = True
    return Data(near, mixed, spread, makers(data), _factors(equation, kinds), drawn(_filling(equation, kinds)))


def _filling(equation: Equation, kinds: Sequence[Kind]) -> Sequence[Kind]:
    """The operands whose elements are among those of the result or are computed with: no indices and no choices."""
    name = equation.name
    if name == "select_n":
        return kinds[1:]
    if name in primitives.LOOKUPS:
        return kinds[:1]
    return (
        [kinds[0], kinds[2]] if name.startswith("scatter") else kinds[:2] if name == "dynamic_update_slice" else kinds
    )


def _factors(equation: Equation, kinds: Sequence[Kind]) -> frozenset[int]:
    """The leaves that a result is the product with."""
    if equation.name in primitives.MOVES:
        return kinds[0].factors if isinstance(kinds[0], Data) else frozenset()
    if equation.name != "mul":
        return frozenset()
    return frozenset().union(*(leaves_of(k) for k in kinds if not isinstance(k, Data)))


def multiplied(equation: Equation, kinds: Sequence[Kind]) -> frozenset[int]:
    """Returns the leaves that a sum is a product of matrices with: what it adds are products of their elements and data."""
    if equation.name != "reduce_sum" or not isinstance(kinds[0], Data):
        return frozenset()
    shape = equation.ins[0].shape
    is_sum = any(shape[i] != 1 for i in equation.params["axes"])
    return kinds[0].factors if is_sum else frozenset()


def is_smaller(shape: Sequence[Any], full: Sequence[Any]) -> bool:
    """Returns whether a shape that broadcasts to another has fewer elements; dimensions may be symbolic."""
    return [n for n in shape if n != 1] != [n for n in full if n != 1]


def contraction(eqn: Eqn, index: int, picked: Sequence[int] = ()) -> tuple[int, ...]:
    """Returns the contracted axes of operand ``index`` of an operation, in the operand's own order.

    Those of a look-up's table are the axes that a scale is shared along: all that it does not pick from; where it picks
    single elements, all but the first, and of a vector the one that it has.
    """
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return tuple(sorted(params["dimension_numbers"][0][index]))
    if name in primitives.LOOKUPS:
        rank = len(eqn.invars[0].aval.shape)
        kept = tuple(i for i in range(rank) if i not in picked) or tuple(range(min(1, rank - 1), rank))
        return kept if index == 0 else ()
    numbers = params["dimension_numbers"]
    spec = numbers.lhs_spec if index == 0 else numbers.rhs_spec
    return tuple(sorted(spec[1:]))


def leaf_contraction(eqn: Eqn, index: int, axes: moves.Axes, picked: Sequence[int] = ()) -> tuple[int, ...] | None:
    """Returns the contracted axes in leaf coordinates, or None where a leaf axis is contracted only in part.

    Args:
        eqn: the operation.
        index: of the operand.
        axes: where the axes of its leaf are.
        picked: the axes that a look-up picks from.
    """
    contracted = set(contraction(eqn, index, picked))
    inside = {axis for i in contracted for axis, _ in axes[i]}
    outside = {axis for i, atoms in enumerate(axes) if i not in contracted for axis, _ in atoms}
    return None if inside & outside or any(axis < 0 for axis in inside) else tuple(sorted(inside))
