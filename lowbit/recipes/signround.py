"""SignRound: how far every entry is moved before it is rounded, by signs of gradients, the best iterate kept.

Reference: Cheng et al., Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs, 2023,
https://arxiv.org/abs/2309.05516: ``Q = s clip(round(W / s + V))`` with ``V`` in [-1/2, 1/2], ``V <- V - rate sign(dL/dV)``, 200 steps,
a rate that falls linearly to zero.

Differs from the paper: the loss is that of one layer's results, read from the inputs' second moment, so that every step sees all
samples; scales come from the search, not from learned multiples of the range; refit and descent follow.
"""

import dataclasses

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lowbit.core.grid import Grid
from lowbit.core.ranges import MSE
from lowbit.solvers.factor import Factor, error

from .recipe import Recipe, Solver


@dataclasses.dataclass(frozen=True)
class SignRound(Solver):
    """Signed descent on the offset of every entry.

    Attributes:
        descents: steps.
        rate: of the first step, in steps of the grid; it falls linearly to zero.
    """

    descents: int = 200
    rate: float = 0.02

    def round(self, weight: Float[Array, "in out"], known: Factor, grid: Grid) -> Float[Array, "in out"]:
        scale = grid.scale[grid.group]

        def levels(v: Array) -> Array:
            return grid.levels(weight + v * scale)

        def one(state: tuple[Array, ...], step: Array) -> tuple[tuple[Array, ...], None]:
            v, least, best = state
            off = grid.values(levels(v)) - weight
            pulled = jnp.matmul(known.damped, off, precision=lax.Precision.HIGHEST)
            lost = jnp.sum(off * pulled, axis=0)
            is_better = lost < least
            best = jnp.where(is_better, v, best)
            rate = jnp.float32(self.rate) * (1.0 - step / self.descents)
            # dL/dV is 2 s (H D), straight through the rounding: of it the sign alone is taken.
            v = jnp.clip(v - rate * jnp.sign(pulled * scale), -0.5, 0.5)
            return (v, jnp.minimum(lost, least), best), None

        start = jnp.zeros_like(weight)
        first = error(weight, grid.values(levels(start)), known.damped)
        steps = jnp.arange(self.descents + 1, dtype=jnp.float32)
        (_, _, best), _ = lax.scan(one, (start, first, start), steps)
        return levels(best)


def recipe() -> Recipe:
    """Returns the recipe ``signround``."""
    return Recipe("signround", SignRound(), inputs=MSE(), passes=4)
