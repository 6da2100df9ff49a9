"""What is elementwise in one tensor: a table of its codes, or a curve through 16-bit ones.

Of 16-bit codes a function is 512 parabolas, one for 128 codes: exact to half a step at the ends of a piece and in its middle, a
line where the function is one. 2 kB, where a table of all arguments takes 128 kB.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Integer

from lowbit.core.rounding import nearest_even, rounded_product, unfused
from lowbit.interpret.integer import compute
from lowbit.interpret.integer.flat import Constants, small_shape
from lowbit.interpret.integer.kind import Given, Kind, Taken
from lowbit.interpret.integer.nodes import TABULAR, Node
from lowbit.interpret.integer.placer import Placer
from lowbit.program import compat, primitives
from lowbit.program.read import Equation, Value

PIECE_BITS = 7
PIECES = 2 ** (16 - PIECE_BITS)
"""An elementwise function of 16-bit codes is cut into 512 pieces of 128 codes."""

BEND_BITS = 2
"""What a piece's middle lies above the line between its ends is kept in quarters of a step."""


class Table(Kind):
    """A function of one tensor's elements."""

    name = "table"
    after = ("move",)
    rounds_clips = False

    def takes(self, equation: Equation, placer: Placer) -> bool:
        return is_tabular(equation, placer)

    def place(self, equation: Equation, placer: Placer, nodes: list[Node]) -> None:
        """Notes what it is a function of: the node comes when something needs the result on a grid (`Table.supply`)."""
        (root,) = {placer.roots.get(v, v) for v in equation.ins if v.is_data}
        placer.need(root, nodes, equation)
        placer.roots[equation.outs[0]] = root

    def supply(self, var: Value, placer: Placer, nodes: list[Node]) -> Value | None:
        root = placer.roots.get(var)
        if root is None:
            return None
        equations = _between(root, var, placer)
        inner = tuple(e.name for e in equations)
        placer.add(placer.home[root], self.name, [root], [var], equations, inner=inner)
        return var

    def constants(self, given: Given) -> dict[str, Array]:
        return given.bounds() | _curve(given) if given.bits > 8 else {"table": _entries(given)}

    def compute(self, taken: Taken) -> list[Any]:
        if compute.code_dtype(taken.specs[0]) == jnp.int16:
            return [_interpolated(taken.codes[0], taken.c, taken.dtype)]
        places = taken.codes[0].astype(jnp.int32) - int(taken.specs[0].format.low)
        return [jnp.take(taken.c["table"], places, axis=0, mode="clip")]

    def needs_codes(self, *, bits: int, is_known: bool) -> bool:
        return bits > 8 or not is_known


def is_tabular(equation: Equation, placer: Placer) -> bool:
    """Returns whether an equation is elementwise in one tensor (or in what a table already makes of it) and in scalars."""
    if equation.name not in TABULAR:
        return False
    data = [v for v in equation.ins if v.is_data]
    roots = {placer.roots.get(v, v) for v in data}
    out = equation.outs[0]
    return (
        len(roots) == 1
        and all(v.shape == out.shape for v in data)
        and all(math.prod(small_shape(v)) == 1 for v in equation.ins if not v.is_data)
    )


def _between(root: Value, out: Value, placer: Placer) -> list[Equation]:
    """The equations from one value to another, in order."""
    passed: dict[Equation, None] = {}
    todo = [out]
    while todo:
        var = todo.pop()
        if var is root or not var.is_data or var.source is None or var.source in passed:
            continue
        passed[var.source] = None
        todo += var.source.ins
    return sorted(passed, key=lambda e: placer.order[e])


def _entries(given: Given) -> Array:
    numbers, (scale, zero) = given.specs[0].format, given.grids[0]
    levels = jnp.arange(numbers.low, numbers.high + 1, dtype=jnp.float32)
    x = rounded_product(levels - zero, scale).astype(given.node.ins[0].dtype)
    return given.codes(_evaluated(given.node, x, given.known).astype(jnp.float32))


def _curve(given: Given) -> dict[str, Array]:
    """The codes at the ends of the pieces of a function of 16-bit codes, and how far its middles are from their lines."""
    half = 2.0 ** (PIECE_BITS - 1)
    codes = (jnp.arange(2 * PIECES + 1, dtype=jnp.float32) - PIECES) * half
    x = rounded_product(codes, given.grids[0][0]).astype(given.node.ins[0].dtype)
    y = _evaluated(given.node, x, given.known).astype(jnp.float32)
    ends = given.codes(y[::2])
    low, high = given.spec.format.low, given.spec.format.high
    middles = jnp.clip(rounded_product(y[1::2], given.inverse) + given.zero, low, high)
    above = middles - 0.5 * (ends[1:].astype(jnp.float32) + ends[:-1].astype(jnp.float32))
    bends = jnp.clip(nearest_even(above * 2.0**BEND_BITS), -(2.0**15), 2.0**15 - 1)
    return {"ends": ends, "bends": bends.astype(jnp.int16)}


def _evaluated(node: Node, x: Array, known: Constants) -> Array:
    """The function at ``x``, one axis; products that meet a sum round on their own."""
    env: dict[Value, Any] = {node.ins[0]: x}
    summed = {v for e in node.equations if e.name in primitives.ADDITIONS for v in e.ins}

    def get(var: Value) -> Array:
        return env[var] if var in env else jnp.broadcast_to(known.small(var).reshape(()), x.shape)

    for equation in node.equations:
        (out,) = compat.rebind(equation.eqn, [get(v) for v in equation.ins])
        if equation.name == "mul" and equation.outs[0] in summed:
            out = unfused(out)
        env[equation.outs[0]] = out
    return env[node.out]


def _interpolated(codes: Integer[Array, "..."], c: Mapping[str, Any], dtype: DTypeLike) -> compute.CodeArray:
    """A function of 16-bit codes: the line between the ends of a piece, and a parabola on it, rounded half up.

    ``y = (y0 + (y1 - y0) * k / 128) + bend * k * (128 - k) / 4096`` for the ``k``-th code of a piece, ``bend`` being what the
    middle lies above the line.
    """
    wide = codes.astype(jnp.int32)
    piece, k = (wide >> PIECE_BITS) + PIECES // 2, wide & (2**PIECE_BITS - 1)
    ends, bends = (c[name].astype(jnp.int32) for name in ("ends", "bends"))
    first, last, bend = (
        jnp.take(x, i, axis=0, mode="clip") for x, i in ((ends, piece), (ends, piece + 1), (bends, piece))
    )
    line = (first << PIECE_BITS) + (last - first) * k
    curve = bend * (k * (2**PIECE_BITS - k))
    point = PIECE_BITS + PIECE_BITS - 2 + BEND_BITS  # of the curve: k * (128 - k) is 4096 in the middle
    y = ((line << (point - PIECE_BITS)) + curve + (1 << (point - 1))) >> point
    return compute.clamped(y, c, dtype)


KIND = Table()
