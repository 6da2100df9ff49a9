"""Sums of one tensor, over axes, windows, or all that came before."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int32

from lowbit.interpret.integer.flat import Constants
from lowbit.interpret.integer.kind import Given, Taken
from lowbit.interpret.integer.linear import Linear
from lowbit.interpret.integer.nodes import Node
from lowbit.interpret.integer.placer import Placer
from lowbit.interpret.layout import reach_of_spec
from lowbit.program import compat, primitives
from lowbit.program.read import Equation

_SUMS = primitives.SUMS - {"add_any"}
_LONGEST = 2**15


class Sum(Linear):
    """A sum over axes or windows; padding of windows adds nothing."""

    name = "sum"
    after = ("index",)

    def takes(self, equation: Equation, placer: Placer) -> bool:
        return equation.name in _SUMS

    def place(self, equation: Equation, placer: Placer, nodes: list[Node]) -> None:
        x = placer.need(equation.ins[0], nodes, equation)
        placer.linear(self.name, equation, [equation], [x], nodes)

    def most_long(self, node: Node) -> tuple[int, int]:
        return _count(node.equations[0]), _LONGEST

    def step(self, given: Given) -> Array:
        return given.grids[0][0] * 1.0

    def reach(self, given: Given) -> float:
        return reach_of_spec(given.specs[0]) * _count(given.node.equations[0])

    def accumulate(self, taken: Taken) -> Int32[Array, "..."]:
        x = taken.codes[0].astype(jnp.int32) - taken.zeros[0]
        return compat.rebind(taken.node.equations[0].eqn, [x])[0]

    def rebuild(
        self, node: Node, values: Sequence[Array], scales: Sequence[float], known: Constants, bits: int
    ) -> tuple[Array, float]:
        return compat.rebind(node.equations[0].eqn, [values[0]])[0], scales[0]


def _count(equation: Equation) -> int:
    """How many elements are added into one."""
    params = equation.eqn.params
    if equation.name == "reduce_sum":
        return math.prod(equation.ins[0].shape[i] for i in params["axes"])
    if equation.name == "cumsum":
        return equation.ins[0].shape[params["axis"]]
    return math.prod(params["window_dimensions"])


KIND = Sum()
