"""AdaRound on searched scales, then coordinate descent: up or down for every entry, learned from the second moment.

Reference: Nagel, Amjad, van Baalen, Louizos, Blankevoort, Up or Down? Adaptive Rounding for Post-Training Quantization,
2020, https://arxiv.org/abs/2004.10568; what differs is said in `lowbit.solvers.adaround`.
"""

import dataclasses

from jaxtyping import Array, Float

from lowbit.core.grid import Grid
from lowbit.core.ranges import MSE
from lowbit.solvers.adaround import AdaRound, adaround
from lowbit.solvers.factor import Factor
from lowbit.solvers.gptq import gptq

from .recipe import Recipe, Solver


@dataclasses.dataclass(frozen=True)
class Adaptive(Solver):
    """Each entry's upper or lower neighbour, learned. Formats whose levels are no integers are rounded by GPTQ.

    Attributes:
        learning: hyper-parameters of AdaRound.
    """

    learning: AdaRound = AdaRound()

    def round(self, weight: Float[Array, "in out"], known: Factor, grid: Grid) -> Float[Array, "in out"]:
        if not grid.format.is_integer:
            return gptq(weight, known, grid)
        return adaround(weight, known.damped, grid, self.learning)


def recipe() -> Recipe:
    """Returns the recipe ``adaround``."""
    return Recipe("adaround", Adaptive(), inputs=MSE(), passes=4)
