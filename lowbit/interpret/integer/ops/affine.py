"""Factors and addends of one tensor that nothing before them could absorb."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int32

from lowbit.interpret.integer.absorb import is_affine
from lowbit.interpret.integer.flat import Constants
from lowbit.interpret.integer.kind import Given, Taken
from lowbit.interpret.integer.linear import Linear
from lowbit.interpret.integer.nodes import Node
from lowbit.interpret.integer.placer import Placer
from lowbit.interpret.layout import reach_of_spec
from lowbit.program.read import Equation

BITS = 12
"""It accumulates in steps this many bits finer than its input's."""


class Affine(Linear):
    """What is affine in one tensor, with constants."""

    name = "affine"
    after = ("table",)

    def takes(self, equation: Equation, placer: Placer) -> bool:
        data = [v for v in equation.ins if v.is_data]
        return len(data) == 1 and is_affine(equation, data[0])

    def place(self, equation: Equation, placer: Placer, nodes: list[Node]) -> None:
        (x,) = (placer.need(v, nodes, equation) for v in equation.ins if v.is_data)
        constant = next((v for v in equation.ins if not v.is_data), x)
        placer.linear(self.name, equation, [equation], [x], nodes, chain=[(equation, constant)])

    def step(self, given: Given) -> Array:
        return given.grids[0][0] * 2.0**-BITS

    def reach(self, given: Given) -> float:
        return reach_of_spec(given.specs[0]) * 2.0**BITS

    def accumulate(self, taken: Taken) -> Int32[Array, "..."]:
        return (taken.codes[0].astype(jnp.int32) - taken.zeros[0]) << BITS

    def rebuild(
        self, node: Node, values: Sequence[Array], scales: Sequence[float], known: Constants, bits: int
    ) -> tuple[Array, float]:
        return values[0], scales[0] * 2.0**-BITS


KIND = Affine()
