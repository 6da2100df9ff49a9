"""How a scale is stored: rounding it to its dtype is part of the grid, in training too."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from . import blocks as block_ops
from .extremes import at_least, at_most, largest_magnitude
from .gradients import straight_through
from .powers import ceil_power_of_two
from .qtensor import QTensor, quantize_with
from .rounding import SMALLEST_SCALE, cast_once
from .spec import Operand, Spec

LARGEST_SCALE = 2.0**126
"""Scales are not larger than this, so that ``1 / scale`` is a normal float32."""

_SMALLEST_OUTER = 2.0**-100
_BOUNDS = {"float16": (2.0**-24, 65504.0)}  # what the dtype can hold; the other dtypes have float32's exponents


def smallest_scale(spec: Spec) -> float:
    """Returns the smallest scale of a spec: a power of two whose product with the smallest level is a normal float32.

    Below it the levels near zero would vanish: compilers flush subnormal numbers on some backends and not on others.
    """
    floor = SMALLEST_SCALE / min(1.0, 2.0 ** (math.frexp(spec.format.smallest)[1] - 1))
    return max(floor, _BOUNDS.get(spec.scale_dtype, (0.0, 0.0))[0])


def scale_of_zeros(spec: Spec) -> float:
    """Returns the scale of a block of zeros: 1, where the codes are zero whatever it is.

    The smallest scale where the format has no zero, so that its levels stand for next to nothing; and where scales are
    themselves quantized, because a 1 among small scales would spoil their grid.
    """
    return 1.0 if spec.scale_spec is None and spec.format.has_zero else smallest_scale(spec)


def largest_scale(spec: Spec) -> float:
    """Returns the largest scale of a spec: 2**126, or what its dtype can hold."""
    return _BOUNDS.get(spec.scale_dtype, (0.0, LARGEST_SCALE))[1]


def stored_scale(
    scale: Float[Array, "..."], spec: Spec, operand: Operand | None = None
) -> Float[Array, "..."] | QTensor:
    """Returns ``scale`` as it will be stored: rounded to ``spec.scale_dtype``, between `smallest_scale` and `largest_scale`.

    ``bfloat16`` and ``float16`` round to nearest, ties to even; ``e8m0`` takes the next power of two up, so that a
    learned scale never saturates (the scales of MX range rules are powers of two already and stay); ``e4m3`` and ``dq``
    quantize the scales themselves. The gradient passes straight through the rounding.

    Args:
        scale: positive float array, of the scale's shape.
        spec: the static description.
        operand: what the scale belongs to: its ``stack`` leading axes share no scale of scales. None: no stack.

    Returns:
        float32 of the same shape; for ``e4m3`` and ``dq`` a `QTensor` of that shape.
    """
    floor = smallest_scale(spec)
    scale = at_most(at_least(scale.astype(jnp.float32), floor), largest_scale(spec))
    if spec.scale_dtype == "float32":
        return scale
    if spec.scale_spec is not None:
        return _quantized_scale(scale, spec.scale_spec, 0 if operand is None else operand.stack)
    if spec.scale_dtype == "e8m0":
        return straight_through(scale, ceil_power_of_two(scale))
    rounded = cast_once(scale, spec.scale_dtype).astype(jnp.float32)
    return straight_through(scale, rounded)


def _quantized_scale(scale: Float[Array, "..."], spec: Spec, stack: int) -> QTensor:
    """Returns the scales on their own symmetric grid: the largest takes the largest level, none becomes zero.

    Groups of scales lie along the longest axis. QLoRA (Dettmers et al., 2023, arXiv 2305.14314, section 3) subtracts
    the mean of the scales first and spends a bit on the sign; here 8 unsigned bits cover zero to the largest.
    """
    shape = tuple(scale.shape)
    longest = max(range(stack, len(shape)), key=lambda axis: shape[axis], default=0)
    blocks = spec.granularity.blocks(Operand(shape, contract=(longest,) if shape else (), stack=stack))
    largest = block_ops.reduce_blocks(lax.stop_gradient(scale), blocks, largest_magnitude)
    outer = at_least(largest * np.float32(1.0 / spec.format.high), _SMALLEST_OUTER)
    least = spec.format.smallest

    def nearest(x, _, high):
        return straight_through(x, spec.format.nearest(at_least(x, least), 0.0, high))

    return quantize_with(scale, spec, outer, None, blocks, nearest=nearest)
