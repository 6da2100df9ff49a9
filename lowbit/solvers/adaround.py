"""AdaRound: learn, for every entry, whether to round up or down.

Reference: Nagel, Amjad, van Baalen, Louizos, Blankevoort, Up or Down? Adaptive Rounding for Post-Training Quantization,
ICML 2020, https://arxiv.org/abs/2004.10568, Eqs. (21) to (24).

The paper's letters: ``V`` the variable of an entry, ``h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)`` how far up
it goes, ``beta`` the sharpness of the regulariser ``1 - |2 h - 1|^beta``, ``lambda`` its weight.

Differs from the paper: the output error is read from the second moment of the inputs, ``tr(D^T H D)``, so that every step
sees all samples and none is kept; activations that follow are not part of it. The error is divided by that of rounding
to nearest, so that ``lambda`` does not depend on a layer's size.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float

from lowbit.core.grid import Grid

from .factor import error

_ZETA, _GAMMA = 1.1, -0.1


@dataclasses.dataclass(frozen=True)
class AdaRound:
    """Hyper-parameters.

    Attributes:
        steps: of Adam.
        rate: its learning rate.
        strength: ``lambda``, once the regulariser is on.
        warmup: the share of steps before it.
        sharpness: ``beta`` at its start and at the end.
    """

    steps: int = 1000
    rate: float = 0.1
    strength: float = 3.0
    warmup: float = 0.2
    sharpness: tuple[float, float] = (20.0, 2.0)

    def __post_init__(self):
        if self.steps < 1 or self.rate <= 0 or self.strength < 0 or not 0 <= self.warmup < 1:
            raise ValueError(
                f"AdaRound needs steps >= 1, rate > 0, strength >= 0 and 0 <= warmup < 1, got {self.steps}, {self.rate}, "
                f"{self.strength} and {self.warmup}"
            )


def rectified(v: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns ``h(V)``, in [0, 1]. Eq. (23)."""
    return jnp.clip(jax.nn.sigmoid(v) * (_ZETA - _GAMMA) + _GAMMA, 0.0, 1.0)


def adaround(
    weight: Float[Array, "in out"], moment: Float[Array, "in in"], grid: Grid, method: AdaRound = AdaRound()
) -> Float[Array, "in out"]:
    """Returns the levels of ``weight``, each one of its two neighbours on the grid: float32, zero point included.

    An output whose learned levels lose more than its nearest ones keeps the nearest.

    Args:
        weight: the target, float32.
        moment: ``H``, the second moment of the inputs.
        grid: of an integer format.
        method: hyper-parameters.

    Raises:
        ValueError: for a format whose levels are not integers.
    """
    if not grid.format.is_integer:
        raise ValueError(f"AdaRound rounds up or down between integers; {grid.format.name} has other levels")
    return _adaround(weight.astype(jnp.float32), moment, grid, method)


@functools.partial(jax.jit, static_argnames=("method",))
def _adaround(weight: Array, moment: Array, grid: Grid, method: AdaRound) -> Array:
    scale = grid.scale[grid.group]
    zero = 0.0 if grid.zero is None else grid.zero[grid.group]
    place = weight * (1.0 / scale)
    floor = jnp.floor(place)
    low, high = grid.low - zero, grid.high - zero

    def soft(v: Array) -> Array:
        return jnp.clip(floor + rectified(v), low, high) * scale

    share = jnp.clip((place - floor - _GAMMA) / (_ZETA - _GAMMA), 1e-4, 1 - 1e-4)
    start = jnp.log(share) - jnp.log1p(-share)  # h(start) is the fractional part: the float weight itself
    nearest = grid.levels(weight)
    base = error(weight, grid.values(nearest), moment)
    unit = 1.0 / jnp.maximum(jnp.sum(base), 1e-30)
    quiet = round(method.steps * method.warmup)
    is_open = (
        place != floor
    )  # what lies on the grid has nothing to learn, and rows of zeros that fill a shape up neither
    count = jnp.maximum(jnp.sum(is_open), 1).astype(jnp.float32)

    def loss(v: Array, step: Array) -> Array:
        """Has the gradient of the loss: of ``tr(D^T H D)`` that is ``2 H D``, one product where autodiff makes two."""
        done = jnp.clip((step - quiet) / max(method.steps - quiet, 1), 0.0, 1.0)
        first, last = method.sharpness
        beta = last + 0.5 * (first - last) * (1.0 + jnp.cos(done * jnp.pi))
        rounded = 1.0 - jnp.power(jnp.abs(2.0 * rectified(v) - 1.0) + 1e-12, beta)
        weightof = jnp.where(step < quiet, 0.0, method.strength)
        values = soft(v)
        steep = 2.0 * jnp.matmul(moment, lax.stop_gradient(values) - weight, precision=lax.Precision.HIGHEST)
        return jnp.sum(steep * values) * unit + weightof * jnp.sum(jnp.where(is_open, rounded, 0.0)) / count

    optimizer = optax.adam(method.rate)

    def one_step(state: tuple[Array, optax.OptState], step: Array) -> tuple[tuple[Array, optax.OptState], None]:
        v, inner = state
        slope = jax.grad(loss)(v, step)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its step counts with floats
            updated: Any = optimizer.update(slope, inner)
        change, inner = updated
        return (v + change, inner), None

    (v, _), _ = lax.scan(one_step, (start, optimizer.init(start)), jnp.arange(method.steps, dtype=jnp.float32))
    levels = jnp.clip(floor + (rectified(v) >= 0.5).astype(jnp.float32), low, high) + zero
    is_better = error(weight, grid.values(levels), moment) <= base
    return jnp.where(is_better, levels, nearest)
