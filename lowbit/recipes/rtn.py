"""Round to nearest: the baseline of every table.

Reference: Krishnamoorthi, Quantizing deep convolutional networks for efficient inference, 2018,
https://arxiv.org/abs/1806.08342, section 3.
"""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float

from lowbit.core.grid import Grid
from lowbit.solvers.factor import Factor

from .recipe import Recipe, Solver


@dataclasses.dataclass(frozen=True)
class Nearest(Solver):
    """Every entry takes the nearest level of its quantizer's own grid; nothing is searched."""

    value: str = "none"
    rounds: int = 0

    needs_moment: ClassVar[bool] = False

    def round(self, weight: Float[Array, "in out"], known: Factor, grid: Grid) -> Float[Array, "in out"]:
        return grid.levels(weight)


def recipe() -> Recipe:
    """Returns the recipe ``rtn``."""
    return Recipe("rtn", Nearest(), is_remeasured=False)
