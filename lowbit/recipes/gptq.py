"""GPTQ as it should be used: scales by search weighed by conditional variance, static groups, then refit and descent.

Reference: Frantar, Ashkboos, Hoefler, Alistarh, GPTQ, 2023, https://arxiv.org/abs/2210.17323. What differs from the paper is
said in `lowbit.solvers.gptq`; the search of scales and the rounds after it are not in it.
"""

import dataclasses

from jaxtyping import Array, Float

from lowbit.core.grid import Grid
from lowbit.core.ranges import MSE
from lowbit.solvers.factor import Factor
from lowbit.solvers.gptq import gptq

from .recipe import Recipe, Solver


@dataclasses.dataclass(frozen=True)
class GPTQ(Solver):
    """Row by row, by falling mean square of the input, each correcting what the rows before it did wrong."""

    def round(self, weight: Float[Array, "in out"], known: Factor, grid: Grid) -> Float[Array, "in out"]:
        return gptq(weight, known, grid)


def recipe() -> Recipe:
    """Returns the recipe ``gptq``."""
    return Recipe("gptq", GPTQ(), inputs=MSE(), passes=4)
