"""Reshape, transpose and expand, and how everything elementwise passes below them.

Movement is written as late as it can be: ``relu(transpose(x))`` becomes ``transpose(relu(x))``, until it meets its inverse or
something that needs the layout. Next to a quantized tensor it moves the codes: runtimes fuse an operator with the
DequantizeLinear right before it and the QuantizeLinear right behind it, and with nothing in between.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .graph import Graph, Shape, Value, compact


def reshape(g: Graph, x: Value, shape: Sequence[int]) -> Value:
    """Returns ``x`` in another shape, row-major."""
    shape = tuple(int(n) for n in shape)
    if x.shape == shape:
        return x
    if (moved := _constant(g, x, lambda a: np.reshape(a, shape))) is not None:
        return moved
    if x.op == "Reshape":
        return reshape(g, operand(x), shape)
    if is_dequantized(x):
        return dequantized_like(g, x, reshape(g, operand(x), shape))
    return g.node("Reshape", [x, g.constant(np.array(shape, np.int64))], shape, x.dtype)


def transpose(g: Graph, x: Value, permutation: Sequence[int]) -> Value:
    """Returns ``x`` with its axes in another order."""
    perm = [int(i) for i in permutation]
    if perm == sorted(perm):
        return x
    if (moved := _constant(g, x, lambda a: np.transpose(a, perm))) is not None:
        return moved
    shape = [x.shape[i] for i in perm]
    moving = [i for i in perm if x.shape[i] != 1]
    if moving == sorted(moving):
        return reshape(g, x, shape)
    if x.op == "Transpose":
        first = permutation_of(x)
        return transpose(g, operand(x), [first[i] for i in perm])
    if is_dequantized(x):
        return dequantized_like(g, x, transpose(g, operand(x), perm))
    return g.node("Transpose", [x], shape, x.dtype, perm=perm)


def expand(g: Graph, x: Value, shape: Sequence[int]) -> Value:
    """Returns ``x``, of the same rank, repeated along its axes of one element. Elementwise operators take ``x`` itself."""
    shape = tuple(shape)
    if x.shape == shape:
        return x
    if (moved := _constant(g, x, lambda a: np.broadcast_to(a, shape))) is not None:
        return moved
    return g.node("Expand", [x, g.constant(np.array(shape, np.int64))], shape, x.dtype)


def broadcast_in_dim(g: Graph, x: Value, shape: Sequence[int], axes: Sequence[int]) -> Value:
    """Returns jax's ``broadcast_in_dim``: axis ``i`` of ``x`` becomes axis ``axes[i]``."""
    inner = [1] * len(shape)
    for n, axis in zip(x.shape, axes, strict=True):
        inner[axis] = n
    return expand(g, reshape(g, x, inner), shape)


def _constant(g: Graph, x: Value, function: Callable[[np.ndarray], np.ndarray]) -> Value | None:
    if x.array is not None:
        return g.constant(function(x.array))
    if x.quantized is not None:
        return g.quantized(x.quantized.moved(function))
    return None


def operand(x: Value, index: int = 0) -> Value:
    """Returns an operand of the node that makes ``x``."""
    assert x.node is not None
    source = x.node.inputs[index]
    assert source is not None
    return source


def permutation_of(x: Value) -> list[int]:
    """Returns the permutation of a transpose."""
    assert x.node is not None
    return list(x.node.attributes["perm"])


def is_dequantized(x: Value) -> bool:
    """Returns whether ``x`` is made by a DequantizeLinear with one scale."""
    return x.op == "DequantizeLinear" and operand(x, 1).size == 1


def dequantized_like(g: Graph, like: Value, codes: Value) -> Value:
    """Returns ``codes`` dequantized as ``like`` is."""
    assert like.node is not None
    return g.node("DequantizeLinear", [codes, *like.node.inputs[1:]], codes.shape, like.dtype)


def grid_of(x: Value) -> list[Value | None]:
    """Returns the scale and the zero point of a dequantized value: the same two constants wherever the grid is the same."""
    assert x.node is not None
    return x.node.inputs[1:]


@dataclasses.dataclass(frozen=True)
class Moved:
    """A value taken apart: movement, and what it moves.

    Attributes:
        source: what is moved.
        perm: of a transpose; None for a reshape.
        shape: the shape after it.
    """

    source: Value
    perm: tuple[int, ...] | None
    shape: Shape

    def is_like(self, other: "Moved") -> bool:
        """Whether both move in the same way."""
        return (self.perm, self.source.shape, self.shape) == (other.perm, other.source.shape, other.shape)

    def again(self, g: Graph, value: Value) -> Value:
        """Returns ``value``, of the source's shape, moved."""
        return reshape(g, value, self.shape) if self.perm is None else transpose(g, value, self.perm)

    def undone(self, g: Graph, x: Value) -> Value | None:
        """Returns ``x``, which may be broadcast against the moved shape, so that moving it gives ``x``; None if it cannot be.

        Computed values come back only where they are there already.
        """
        rank = len(self.shape)
        array = x.array
        if array is not None:
            array = compact(array.reshape((1,) * (rank - array.ndim) + array.shape))
            if array.size == 1:
                return g.constant(array.reshape(()))
            if self.perm is not None:
                return g.constant(np.transpose(array, np.argsort(self.perm)))
            inner = self.source.shape
            if array.shape == self.shape:
                return g.constant(array.reshape(inner))
            common = 0
            while common < min(rank, len(inner)) and inner[-1 - common] == self.shape[-1 - common]:
                common += 1
            if all(n == 1 for n in array.shape[: rank - common]):
                return g.constant(array.reshape((1,) * (len(inner) - common) + array.shape[rank - common :]))
            return None
        if x.size == 1 and len(x.shape) <= rank:
            return reshape(g, x, (1,) * len(self.source.shape))
        return self._found(g, x) if x.shape == self.shape else None

    def _found(self, g: Graph, x: Value) -> Value | None:
        if self.perm is None:
            return None
        if is_dequantized(x):
            codes = self._found(g, operand(x))
            return None if codes is None else dequantized_like(g, x, codes)
        return g.find("Transpose", [x], perm=[int(i) for i in np.argsort(self.perm)])


def taken_apart(g: Graph, x: Value) -> Moved | None:
    """Returns the last movement of a value; of a dequantized one, that of its codes."""
    if x.op == "Transpose":
        return Moved(operand(x), tuple(permutation_of(x)), x.shape)
    if x.op == "Reshape":
        return Moved(operand(x), None, x.shape)
    if is_dequantized(x) and (inner := taken_apart(g, operand(x))) is not None:
        return dataclasses.replace(inner, source=dequantized_like(g, x, inner.source))
    return None


def elementwise(
    g: Graph, op: str, inputs: Sequence[Value], shape: Sequence[int], dtype: Any, **attributes: Any
) -> Value:
    """Returns an operator whose every result depends on one element of each operand.

    Args:
        g: the graph.
        op: its name.
        inputs: operands that broadcast to ``shape``.
        shape: of the result.
        dtype: of the result.
        **attributes: of the node.
    """
    return _written(g, op, inputs, tuple(shape), dtype, attributes, can_move=True)


def _written(
    g: Graph, op: str, inputs: Sequence[Value], shape: Shape, dtype: Any, attributes: dict[str, Any], *, can_move: bool
) -> Value:
    inputs = _narrowed(g, inputs, shape)
    if can_move and (below := _below_movement(g, inputs, shape)) is not None:
        how, sources, is_settled = below
        return how.again(g, _written(g, op, sources, how.source.shape, dtype, attributes, can_move=not is_settled))
    inner = np.broadcast_shapes(*(x.shape for x in inputs))
    result = g.node(op, inputs, inner, dtype, **attributes)
    return expand(g, reshape(g, result, (1,) * (len(shape) - len(inner)) + inner), shape)


def _narrowed(g: Graph, inputs: Sequence[Value], shape: Shape) -> list[Value]:
    """The operands before they were repeated; constants as small as they are."""

    def narrow(x: Value) -> Value:
        if x.array is not None:
            return g.constant(compact(x.array))
        return operand(x) if x.op == "Expand" else x

    return [narrow(x) for x in inputs]


def _below_movement(g: Graph, inputs: Sequence[Value], shape: Shape) -> tuple[Moved, list[Value], bool] | None:
    """The movement that every operand of the full shape goes through, all operands before it, and whether that is settled.

    It is where a computed operand was found in the other layout: looked for again, the two would swap forever.
    """
    for candidate in inputs:
        if candidate.shape != shape or candidate.array is not None:
            continue
        how = taken_apart(g, candidate)
        if how is None or how.source.size == 1:
            continue
        sources, is_settled = [], False
        for x in inputs:
            other = taken_apart(g, x) if x.array is None else None
            if other is not None and other.is_like(how):
                sources.append(other.source)
            else:
                sources.append(how.undone(g, x))
                is_settled |= x.array is None and x.size > 1
        if all(source is not None for source in sources):
            return how, [source for source in sources if source is not None], is_settled
    return None
