"""Scales by search, then nearest: no feedback between entries, no data where errors count alike.

The range of every scale is the one with the least squared error, weighed by the inputs' mean squares. Reference:
LiteRT's ``oscar`` and AutoRound's ``--iters 0`` (imatrix) do this for integers.
"""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float

from lowbit.core.grid import Grid
from lowbit.core.ranges import MSE
from lowbit.solvers.factor import Factor

from .recipe import Recipe, Solver


@dataclasses.dataclass(frozen=True)
class Searched(Solver):
    """Nearest level on a searched scale."""

    value: str = "diagonal"
    rounds: int = 0

    needs_moment: ClassVar[bool] = True

    def round(self, weight: Float[Array, "in out"], known: Factor, grid: Grid) -> Float[Array, "in out"]:
        return grid.levels(weight)


def recipe() -> Recipe:
    """Returns the recipe ``search``."""
    return Recipe("search", Searched(), inputs=MSE())
