"""Weights that jump back and forth between two levels: count them, dampen them, freeze them.

Reference: Nagel, Fournarakis, Bondarenko, Blankevoort, Overcoming Oscillations in Quantization-Aware Training, ICML 2022,
https://arxiv.org/abs/2203.11086, section 4. ``m``: momentum, ``f``: oscillation frequency.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lowbit.core.qtensor import QTensor


class Oscillation(NamedTuple):
    """What is known of the levels of one weight. All arrays have its shape.

    Attributes:
        levels: of the last step.
        direction: of the last change: -1, 0 (none yet) or 1.
        frequency: moving average of "the level changed against its last direction".
        mean: moving average of the levels.
        frozen: which weights no longer move.
        held: the levels they are held at.
    """

    levels: Float[Array, "..."]
    direction: Float[Array, "..."]
    frequency: Float[Array, "..."]
    mean: Float[Array, "..."]
    frozen: Bool[Array, "..."]
    held: Float[Array, "..."]


def watch(q: QTensor) -> Oscillation:
    """Returns the state before the first step, from the quantized weight."""
    levels = jax.lax.stop_gradient(q.levels())
    zeros = jnp.zeros_like(levels)
    return Oscillation(levels, zeros, zeros, levels, jnp.zeros(levels.shape, bool), levels)


def observe(state: Oscillation, q: QTensor, *, momentum: float = 0.01, threshold: float | None = None) -> Oscillation:
    """Returns the state after a training step; weights that oscillate more often than ``threshold`` become frozen.

    A frozen weight is held at its mean level, rounded.

    Args:
        state: of the step before.
        q: the weight quantized at this step.
        momentum: of both averages, in (0, 1]; a threshold should be at least twice as large.
        threshold: of the frequency, in (0, 1], or None to freeze nothing.

    Raises:
        ValueError: for a momentum or threshold out of range.

    Example:
        >>> from lowbit.core.spec import Channel, Spec
        >>> from lowbit.formats.integer import Integer
        >>> at = lambda level: QTensor(jnp.full((1,), level), jnp.ones(1), None, Spec(Integer(4), Channel()), "float32")
        >>> state = watch(at(0.0))
        >>> for level in (1.0, 0.0, 1.0, 0.0):
        ...     state = observe(state, at(level), momentum=0.5, threshold=0.8)
        >>> state.frequency.tolist(), state.frozen.tolist()
        ([0.875], [True])
    """
    if not 0.0 < momentum <= 1.0:
        raise ValueError(f"momentum must be in (0, 1], got {momentum}")
    if threshold is not None and not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold must be None or in (0, 1], got {threshold}")
    levels = jnp.where(state.frozen, state.held, jax.lax.stop_gradient(q.levels()))
    change = jnp.sign(levels - state.levels)
    oscillated = (change * state.direction == -1.0).astype(jnp.float32)  # Eq. (6)
    frequency = momentum * oscillated + (1.0 - momentum) * state.frequency  # Eq. (7)
    direction = jnp.where(change != 0, change, state.direction)
    frozen = state.frozen
    if threshold is not None:
        frozen = frozen | (frequency > threshold)
    held = jnp.where(frozen & ~state.frozen, jnp.round(state.mean), state.held)
    mean = momentum * levels + (1.0 - momentum) * state.mean
    return Oscillation(levels, direction, frequency, mean, frozen, held)


def freeze(weight: Float[Array, "..."], state: Oscillation, q: QTensor) -> Float[Array, "..."]:
    """Returns ``weight`` with its frozen part on the level where it is held; the rest as it is.

    Args:
        weight: after the optimizer's step.
        state: of `observe`.
        q: the quantized weight, for its scale.
    """
    held = QTensor(state.held, q.scale, q.zero, q.spec, str(weight.dtype), q.groups).dequantize()
    return jnp.where(state.frozen, held, weight)


def dampening_loss(weight: Float[Array, "..."], q: QTensor) -> Float[Array, ""]:
    """Returns ``sum (level value - clip(w))**2``: pulls weights to the middle of their cells. Float32.

    Clipped weights, and the levels, get no gradient (section 4.2, Eq. (5)).

    Args:
        weight: the float weight.
        q: it, quantized.

    Example:
        >>> from lowbit.quantizers.rtn import rtn
        >>> from lowbit.core.spec import Operand
        >>> w, how = jnp.array([[0.4], [7.0]]), rtn("w4").weight
        >>> operand = Operand((2, 1), contract=(0,))
        >>> q = how.quantize(how.init(operand, {"values": w}, jax.random.key(0)), w, operand)
        >>> round(float(dampening_loss(w, q)), 4)
        0.16
    """
    value = jax.lax.stop_gradient(QTensor(q.codes, q.scale, q.zero, q.spec, "float32", q.groups).dequantize())
    levels = jax.lax.stop_gradient(q.levels())
    low, high = q.spec.format.low, q.spec.format.high
    inside = (levels > low) & (levels < high)
    return jnp.sum(jnp.where(inside, jnp.square(value - weight.astype(jnp.float32)), 0.0))
