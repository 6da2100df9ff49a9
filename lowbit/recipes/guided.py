"""Guided GPTQ: rows of inputs count by how much the model's results move with what the operation makes of them.

Reference: Kim, Park, Jung, Kim, Lee, Lee, GuidedQuant: Large Language Model Quantization via Exploiting End Loss Guidance, ICML 2025,
https://arxiv.org/abs/2505.07004, Eqs. (6) and (7): with ``g_j`` the gradient of the loss by output ``j``, and ``J`` a group of outputs,

    H_J = X^T diag(mean_{j in J} g_j^2) X,

the diagonal by outputs of the Fisher matrix, its mean over the group. Any solver takes it in place of ``X^T X``; here ``gptq`` does,
group by group.

The letters: ``X`` rows of inputs; ``g`` gradients in the float model, of which every row has its own.

Differs from the paper: calibration has no labels. What the loss is of are the model's results, each with a random sign, fixed: the
square of its gradient is then, in the mean over signs, the sum of the squared derivatives of all results, so that the weighted error
stands for the squared error of what the model says. `Guided(objective=...)` is a loss of another kind, from what ``fn`` returns.
Scales by search, refit and descent as in ``gptq``, not codebooks. Decibels and ratios of the report are in this norm.
In a loop over time or a shard_map there is no one gradient by result: there rows count alike.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.core.grid import Grid
from lowbit.core.moments import GuidedGram
from lowbit.core.ranges import MSE
from lowbit.solvers.factor import Factor
from lowbit.solvers.gptq import gptq

from .recipe import Recipe, Solver


def signed(result: Any) -> Float[Array, ""]:
    """Returns the sum of all results that are floats, each with a random sign: the same ones for the same shapes; float32."""
    total = jnp.zeros((), jnp.float32)
    for i, leaf in enumerate(jax.tree.leaves(result)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            sign = jax.random.rademacher(jax.random.fold_in(jax.random.key(0), i), leaf.shape, jnp.float32)
            total = total + jnp.sum(sign * leaf.astype(jnp.float32))
    return total


@dataclasses.dataclass(frozen=True)
class Guided(Solver):
    """GPTQ in the norm of inputs weighted by squared gradients.

    Attributes:
        groups: of outputs, each with a norm of its own. Of a number of outputs that they do not divide, one.
        objective: from the model's result to a scalar whose gradients count.
    """

    groups: int = 4
    objective: Callable[[Any], Any] = signed

    def __post_init__(self):
        super().__post_init__()
        if self.groups < 1:
            raise ValueError(f"groups must be at least 1, got {self.groups}")
        if self.alpha or self.is_centered:
            raise ValueError("guided moments are of inputs as they are: alpha must be 0 and is_centered False")

    def moment(self, most: int) -> GuidedGram:
        return GuidedGram(most, self.groups)  # Eq. (7)

    def loss(self, result: Any) -> Float[Array, ""]:
        return self.objective(result)

    def round(self, weight: Float[Array, "in out"], known: Factor, grid: Grid) -> Float[Array, "in out"]:
        return gptq(weight, known, grid)


def recipe() -> Recipe:
    """Returns the recipe ``guided``."""
    return Recipe("guided", Guided(), inputs=MSE(), passes=4)
