"""PARQ as an optax transformation: the optimizer pulls parameters to the grid, the model is left alone.

Reference: Jin, Lin, Xiao et al., PARQ: Piecewise-Affine Regularized Quantization, ICML 2025,
https://arxiv.org/abs/2503.15748. ``z``: latent parameters, ``rho``: inverse slope, from 1 (nothing happens) to 0 (hard).

Differs from the paper: grids are lowbit's uniform ones with the scale of a quantizer's start, found anew from ``z`` at every
step.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lowbit.core.extremes import at_least, at_most, larger, smaller
from lowbit.core.qtensor import QTensor
from lowbit.core.quantizer import Quantizer
from lowbit.core.spec import Operand


class ParqState(NamedTuple):
    """State of `parq`.

    Attributes:
        step: updates done.
        latent: ``z``, a tree like the parameters.
        inner: the inner optimizer's state.
    """

    step: Int[Array, ""]
    latent: Any
    inner: Any


def inverse_slope(step: Int[Array, ""] | int, *, start: int, end: int, steepness: float = 10.0) -> Float[Array, ""]:
    """Returns ``rho``: 1 up to ``start``, falling like a mirrored sigmoid to 0 at ``end``.

    Example:
        >>> [round(float(inverse_slope(step, start=0, end=10)), 3) for step in (0, 5, 10, 99)]
        [1.0, 0.5, 0.0, 0.0]
    """
    done = jnp.clip((jnp.asarray(step, jnp.float32) - start) * (1.0 / (end - start)), 0.0, 1.0)
    top, bottom = 1.0 / (1.0 + math.exp(-0.5 * steepness)), 1.0 / (1.0 + math.exp(0.5 * steepness))
    value = jax.nn.sigmoid(-steepness * (done - 0.5))
    return jnp.clip((value - bottom) * (1.0 / (top - bottom)), 0.0, 1.0)


def proximal(
    z: Float[Array, "..."], quantizer: Quantizer, rho: Float[Array, ""] | float, *, axis: int = -2
) -> Float[Array, "..."]:
    """Returns the piecewise-affine proximal map of ``z``: steep between two levels, the nearest level where ``rho`` is 0.

    Between neighbouring levels ``a < b`` with the middle ``c``: ``clip(c + (z - c) / rho, a, b)``. Beyond the outer levels,
    the outer level. Float32, one cast at the end.

    Args:
        z: parameters of one leaf.
        quantizer: for weights, integer and symmetric, with a fixed scale: `rtn`.
        rho: in [0, 1]; 1 returns ``z`` within the grid's range.
        axis: the contracted axis.

    Example:
        >>> from lowbit.quantizers.rtn import rtn
        >>> z = jnp.array([[0.0, 0.4, 0.9, 3.0]])
        >>> [round(x, 3) for x in proximal(z, rtn("w3/narrow").weight, 0.5, axis=1)[0].tolist()]
        [0.0, 0.3, 1.0, 3.0]
    """
    spec = quantizer.spec
    operand = Operand(tuple(z.shape), str(z.dtype), contract=(axis % z.ndim,))
    state = quantizer.init(operand, {"values": z}, jax.random.key(0))
    grid = quantizer.quantize(state, z, operand)
    wide = z.astype(jnp.float32)
    scaled = grid._blockwise(wide, 1.0 / grid.scale_values, lambda a, b: a * b)
    below = at_most(at_least(jnp.floor(scaled), spec.format.low), spec.format.high)
    above = at_most(at_least(jnp.floor(scaled) + 1.0, spec.format.low), spec.format.high)
    middle = 0.5 * (below + above)
    steep = smaller(larger(middle + (scaled - middle) * (1.0 / jnp.maximum(rho, 1e-6)), below), above)
    soft = QTensor(steep, grid.scale, None, spec, str(z.dtype), grid.groups).dequantize()
    return jnp.where(jnp.asarray(rho) <= 0.0, grid.dequantize(), jnp.where(jnp.asarray(rho) >= 1.0, z, soft))


def parq(
    inner: optax.GradientTransformation,
    quantizer: Quantizer,
    *,
    start: int,
    end: int,
    steepness: float = 10.0,
    axis: int = -2,
) -> optax.GradientTransformation:
    """Returns an optimizer whose parameters move to the grid between two steps and are on it from then on.

    ``z' = z + inner(gradient at w)``, ``w' = prox(z')`` (aggregate proximal gradient). Leaves of rank below 2 follow the
    inner optimizer; use `optax.masked` to leave out more. After ``end`` the parameters are on the grid up to the last
    bit of ``w + (w' - w)``; encoding finds the codes.

    Args:
        inner: any optax optimizer.
        quantizer: for weights, integer and symmetric, with a fixed scale.
        start: the last step that is the inner optimizer's alone.
        end: the first step on the grid.
        steepness: of the transition; near 0 it is linear.
        axis: the contracted axis of the weights.

    Raises:
        ValueError: for a quantizer that is not uniform and symmetric, or steps out of order.

    Example:
        >>> from lowbit.quantizers.rtn import rtn
        >>> optimizer = parq(optax.sgd(0.1), rtn("w2/narrow").weight, start=0, end=2)
        >>> w = jnp.array([[0.9], [-0.2]])
        >>> state = optimizer.init(w)
        >>> for _ in range(3):
        ...     updates, state = optimizer.update(jnp.zeros((2, 1)), state, w)
        ...     w = optax.apply_updates(w, updates)
        >>> [round(x, 3) for x in w[:, 0].tolist()]
        [0.9, 0.0]
    """
    if not quantizer.spec.format.is_integer or not quantizer.spec.symmetric or quantizer.spec.dynamic:
        raise ValueError(f"parq needs a symmetric integer grid, got {quantizer.spec.text}")
    if not 0 <= start < end:
        raise ValueError(f"steps must be 0 <= start < end, got {start} and {end}")
    if not steepness > 0:
        raise ValueError(f"steepness must be positive, got {steepness}")

    def init(params: Any) -> ParqState:
        return ParqState(jnp.zeros((), jnp.int32), params, inner.init(params))

    def update(updates: Any, state: ParqState, params: Any = None) -> tuple[Any, ParqState]:
        if params is None:
            raise ValueError("parq needs the parameters: update(gradients, state, params)")
        steps, inner_state = inner.update(updates, state.inner, state.latent)
        latent = optax.apply_updates(state.latent, steps)
        step = state.step + 1
        rho = inverse_slope(step, start=start, end=end, steepness=steepness)

        def move(z: Array, w: Array) -> Array:
            return (proximal(z, quantizer, rho, axis=axis) if z.ndim >= 2 else z) - w

        return jax.tree.map(move, latent, params), ParqState(step, latent, inner_state)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]  # optax types states as pytrees
