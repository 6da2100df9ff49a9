"""Rows of a weight, picked by integers."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lowbit.core.rounding import rounded_product
from lowbit.interpret.integer import compute
from lowbit.interpret.integer.fixed import fixed_points
from lowbit.interpret.integer.kind import Given, Kind, Taken
from lowbit.interpret.integer.nodes import Node
from lowbit.interpret.integer.placer import Placer
from lowbit.interpret.lookup import part
from lowbit.program import primitives
from lowbit.program.read import Equation, Value

NEAREST = {"mode": lax.GatherScatterMode.CLIP, "fill_value": None}
"""How rows are picked: an index out of range takes the nearest row; NaN, as jax fills by default, has no code."""


class Lookup(Kind):
    """A look-up: multipliers are one, or one per row."""

    name = "lookup"
    reads_grids = False

    def takes(self, equation: Equation, placer: Placer) -> bool:
        return equation.name in primitives.LOOKUPS and equation.address in placer.operations

    def place(self, equation: Equation, placer: Placer, nodes: list[Node]) -> None:
        indices = [v for v in equation.ins[1:] if v.is_data]
        if not placer.indices.issuperset(indices):
            raise placer.error(
                equation, "rows of a weight are picked by integers that depend on integer arguments alone"
            )
        op = placer.operations[equation.address]
        placer.add(nodes, self.name, indices, list(equation.outs), [equation], op=op)

    def constants(self, given: Given) -> dict[str, Array]:
        """From the steps of a weight, one or one per row, to those of the result."""
        assert given.weight is not None
        q, right = fixed_points(rounded_product(given.weight.scale_values, given.inverse))
        return given.bounds() | {"multiplier": q, "shift": right, "offset": given.zero.astype(jnp.int32)}

    def held(self, node: Node) -> list[Value]:
        return node.equations[0].ins

    def changes(self, equation: Equation) -> dict[str, Any]:
        return NEAREST if equation.name == "gather" else {}

    def compute(self, taken: Taken) -> list[Any]:
        equation, c, weight = taken.node.equations[0], taken.c, taken.weight
        assert weight is not None
        indices, table = picking(taken.node, taken.codes, taken.known.value), weight.codes
        rank, changes = len(equation.outs[0].shape), self.changes(equation)
        is_one = c["multiplier"].size == 1
        q, right = (
            x.reshape((1,) * rank) if is_one else part(equation.eqn, x, indices, table.shape, **changes)
            for x in (c["multiplier"], c["shift"])
        )
        codes = part(equation.eqn, table, indices, table.shape, **changes)
        wide = taken.rounding.multiply(codes.astype(jnp.int32), q, right)
        return [compute.clamped(wide + c["offset"], c, taken.dtype)]


def picking(node: Node, values: Sequence[Any], get: Callable[[Value], Any]) -> list[Any]:
    """Returns the indices of a look-up: integers that depend on arguments, and written ones."""
    rest = iter(values)
    return [next(rest) if v.is_data else get(v) for v in node.equations[0].ins[1:]]


KIND = Lookup()
