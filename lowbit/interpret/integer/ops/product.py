"""The product of two tensors' elements."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int32

from lowbit.core.rounding import rounded_product
from lowbit.interpret.integer.flat import Constants
from lowbit.interpret.integer.kind import Given, Taken
from lowbit.interpret.integer.linear import Linear
from lowbit.interpret.integer.nodes import Node
from lowbit.interpret.integer.placer import Placer
from lowbit.interpret.layout import reach_of_spec
from lowbit.program.read import Equation


class Product(Linear):
    """A product of two tensors, element by element."""

    name = "product"
    after = ("affine",)

    def takes(self, equation: Equation, placer: Placer) -> bool:
        return len(equation.ins) == 2 and equation.name == "mul"

    def place(self, equation: Equation, placer: Placer, nodes: list[Node]) -> None:
        ins = [placer.need(v, nodes, equation) for v in equation.ins]
        placer.linear(self.name, equation, [equation], ins, nodes)

    def step(self, given: Given) -> Array:
        return rounded_product(given.grids[0][0], given.grids[1][0])

    def reach(self, given: Given) -> float:
        return reach_of_spec(given.specs[0]) * reach_of_spec(given.specs[1])

    def accumulate(self, taken: Taken) -> Int32[Array, "..."]:
        left, right = (x.astype(jnp.int32) - z for x, z in zip(taken.codes, taken.zeros, strict=True))
        return left * right

    def rebuild(
        self, node: Node, values: Sequence[Array], scales: Sequence[float], known: Constants, bits: int
    ) -> tuple[Array, float]:
        return values[0] * values[1], scales[0] * scales[1]


KIND = Product()
