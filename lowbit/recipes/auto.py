"""The recipe that picks: AdaRound where few bits leave much to win and the weight is small enough to learn, else GPTQ.

The rule is one of cost, not a measured optimum: a step of learning takes ``K K N`` products, a thousand are taken, and the error
that either leaves falls fourfold with every bit, so that from 6 bits on there is little left to win. The README's table has both
beside each other on pretrained networks.
"""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float

from lowbit.core.grid import Grid
from lowbit.core.ranges import MSE
from lowbit.core.spec import Format
from lowbit.solvers.adaround import AdaRound, adaround
from lowbit.solvers.factor import Factor
from lowbit.solvers.gptq import gptq

from .recipe import Recipe, Solver


@dataclasses.dataclass(frozen=True)
class Picked(Solver):
    """AdaRound or GPTQ, by format and size.

    Attributes:
        bits: integers of at most this width are learned.
        entries: a weight ``[K, N]`` of more is not: a step of learning takes ``K K N`` products.
        learning: hyper-parameters of AdaRound.
    """

    bits: int = 5
    entries: int = 1 << 20
    learning: AdaRound = AdaRound()

    needs_moment: ClassVar[bool] = True

    def picks(self, numbers: Format, shape: tuple[int, int]) -> str:
        is_learned = numbers.is_integer and numbers.bits <= self.bits and shape[0] * shape[1] <= self.entries
        if is_learned:
            return f"AdaRound: {numbers.name}, {shape[0]} x {shape[1]}"
        why = f"{numbers.name} has no upper and lower integer" if not numbers.is_integer else ""
        why = why or (f"{numbers.bits} bits" if numbers.bits > self.bits else f"{shape[0]} x {shape[1]} is large")
        return f"GPTQ: {why}"

    def round(self, weight: Float[Array, "in out"], known: Factor, grid: Grid) -> Float[Array, "in out"]:
        rows, columns = weight.shape
        if self.picks(grid.format, (rows, columns)).startswith("AdaRound"):
            return adaround(weight, known.damped, grid, self.learning)
        return gptq(weight, known, grid)


def recipe() -> Recipe:
    """Returns the recipe ``auto``."""
    return Recipe("auto", Picked(), inputs=MSE(), passes=4, why="picked for every operation: see its notes")
