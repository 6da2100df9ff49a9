"""Movements of one tensor: reshapes, transpositions, slices, zero pads, maxima of windows, rows picked by constants."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import lax
from jaxtyping import Array

from lowbit.interpret.integer.absorb import is_float
from lowbit.interpret.integer.kind import Movement
from lowbit.interpret.integer.nodes import MOVES, TABULAR, Node
from lowbit.interpret.integer.placer import Placer
from lowbit.program import compat
from lowbit.program.constants import written_value
from lowbit.program.read import Equation, Value

from .lookup import NEAREST


class Move(Movement):
    """A movement of one tensor; padding is the zero point."""

    name = "move"
    after = ("concatenate", "select")
    names = "never"

    def takes(self, equation: Equation, placer: Placer) -> bool:
        first = next(v for v in equation.ins if v.is_data)
        return equation.name in MOVES and not (equation.name in TABULAR and first in placer.roots)

    def place(self, equation: Equation, placer: Placer, nodes: list[Node]) -> None:
        if any(v.is_data for v in equation.ins[1:]):
            raise placer.error(equation, "only the first operand of a movement may depend on data")
        if not is_float(equation.outs[0]):
            raise placer.error(equation, f"its result is {equation.outs[0].dtype}, which has no grid")
        if equation.name == "pad" and not _is_written(equation.ins[1], 0.0):
            raise placer.error(equation, "only padding with zeros has a code")
        x = placer.need(equation.ins[0], nodes, equation)
        placer.add(nodes, self.name, [x], list(equation.outs), [equation])
        placer.grids.unify(x, *equation.outs)

    def held(self, node: Node) -> list[Value]:
        return node.equations[0].ins

    def moved(self, node: Node, values: Sequence[Any], zero: Array, get: Callable[[Value], Any]) -> list[Any]:
        equation, x = node.equations[0], values[0]
        if equation.name == "pad":
            return [lax.pad(x, zero.astype(x.dtype), equation.eqn.params["padding_config"])]
        rest = [get(v) for v in equation.ins[1:]]
        if equation.name == "convert_element_type":
            return [x]
        return compat.rebind(equation.eqn, [x, *rest], **(NEAREST if equation.name == "gather" else {}))


def _is_written(var: Value, value: float) -> bool:
    known = written_value(var)
    return known is not None and bool(np.all(known == value))


KIND = Move()
