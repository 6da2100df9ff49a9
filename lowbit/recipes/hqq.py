"""HQQ: scales and zero points by half-quadratic splitting of a norm that forgives outliers, without data.

Reference: Badri, Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023, https://mobiusml.github.io/hqq_blog/:
``min_z |W - Q_z^-1(Q_z(W))|_p^p`` with ``p < 1``, split as ``min_{z, E} |E|_p^p + b/2 |E - (W - Q_z^-1(Q_z(W)))|^2``. With
``p < 1`` a few large errors count little, so that outliers do not stretch the range that all others share.
``E``: errors that are forgiven; ``z``: zero points; ``b``: how tightly ``E`` follows, times ``kappa`` every step.

Differs from the paper: errors are measured in steps of the grid, so that ``b`` means the same for weights of any size; scales move as
zero points do, by least squares, where the paper keeps them; zero points are integers, as they are served; the start is the best of
some multiples of the full range by squared error (by the norm itself, four bits of heavy tails lose three times as much squared
error as nearest: all that reaches far is clipped), and the best of start, iterates and full range is kept for every group, so that
none is worse than rounded to nearest. Scales that outputs share, and those that are quantized themselves, are searched alone.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lowbit.core.grid import Grid
from lowbit.core.rounding import rounded_product
from lowbit.solvers.factor import Factor

from .recipe import Recipe, Solver


@dataclasses.dataclass(frozen=True)
class HalfQuadratic(Solver):
    """Nearest level on a grid that is best in the p-norm.

    Attributes:
        p: of the norm.
        b: weight of the quadratic part, for errors in steps of the grid.
        kappa: by which it grows.
        iterations: of splitting.
    """

    value: str = "ones"
    rounds: int = 0
    p: float = 0.7
    b: float = 10.0
    kappa: float = 1.01
    iterations: int = 20

    needs_moment: ClassVar[bool] = False
    has_own_grid: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.p <= 1 or self.b <= 0 or self.kappa < 1 or self.iterations < 0:
            raise ValueError(
                f"HalfQuadratic needs 0 < p <= 1, b > 0, kappa >= 1 and iterations >= 0, got {self.p}, {self.b}, {self.kappa} "
                f"and {self.iterations}"
            )

    def round(self, weight: Float[Array, "in out"], known: Factor, grid: Grid) -> Float[Array, "in out"]:
        return grid.levels(weight)

    def grid(self, weight: Float[Array, "in out"], value: Float[Array, " in"], grid: Grid, store: Any) -> Grid:
        counts = value[:, None]

        def total(x: Array) -> Array:
            return jax.ops.segment_sum(counts * x, grid.group, grid.scale.shape[0])

        def better(state: tuple[Grid, Array], now: Grid, power: float) -> tuple[Grid, Array]:
            best, least = state
            total_error = total(jnp.abs(weight - now.nearest(weight)) ** power)
            is_better = total_error < least  # what is not finite is not less
            zero = None if now.zero is None or best.zero is None else jnp.where(is_better, now.zero, best.zero)
            scale = jnp.where(is_better, now.scale, best.scale)
            return dataclasses.replace(best, scale=scale, zero=zero), jnp.where(is_better, total_error, least)

        def tried(state: tuple[Grid, Array], multiple: Array) -> tuple[tuple[Grid, Array], None]:
            return better(state, dataclasses.replace(grid, scale=store(multiple * grid.scale)), 2.0), None

        def split(state: tuple[Any, ...], b: Array) -> tuple[tuple[Any, ...], None]:
            best, now = state
            levels, scale = now.levels(weight), now.scale[grid.group]
            off = (weight - now.values(levels)) / scale
            size = jnp.maximum(jnp.abs(off), 1e-9)
            forgiven = jnp.sign(off) * jnp.maximum(size - size ** (self.p - 1.0) / b, 0.0)  # E, in steps
            aim = weight - rounded_product(forgiven, scale)
            if now.zero is not None:
                mean = total(levels - aim / scale) / jnp.maximum(total(jnp.ones_like(weight)), 1.0)
                zero = jnp.clip(jnp.rint(mean), now.low, now.high)
                now = dataclasses.replace(now, zero=zero)
                levels = levels - zero[grid.group]
            power = total(jnp.square(levels))
            fitted = total(aim * levels) / jnp.where(power > 0, power, 1.0)
            is_scale = (power > 0) & (jnp.sign(fitted) == jnp.sign(now.scale))
            now = dataclasses.replace(now, scale=store(jnp.where(is_scale, fitted, now.scale)))
            return (better(best, now, self.p), now), None

        multiples = jnp.asarray(np.linspace(0.4, 1.1, self.steps, dtype=np.float32))
        none = jnp.full(grid.scale.shape, jnp.inf)
        (start, _), _ = lax.scan(tried, better((grid, none), grid, 2.0), multiples)
        best = better(better((grid, none), grid, self.p), start, self.p)
        weights = jnp.float32(self.b) * jnp.float32(self.kappa) ** jnp.arange(self.iterations, dtype=jnp.float32)
        ((best, _), _), _ = lax.scan(split, (best, start), weights)
        return best


def recipe() -> Recipe:
    """Returns the recipe ``hqq``."""
    return Recipe("hqq", HalfQuadratic())
