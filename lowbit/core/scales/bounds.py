"""The scale of a spec: between its bounds, then as its storage holds it."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.core.extremes import at_least, at_most
from lowbit.core.operand import Operand
from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import SMALLEST_SCALE
from lowbit.core.spec import Spec


def smallest_scale(spec: Spec) -> float:
    """Returns the smallest scale of a spec: a power of two whose product with the smallest level is a normal float32.

    Below it the levels near zero would vanish: compilers flush subnormal numbers on some backends and not on others.
    """
    floor = SMALLEST_SCALE / min(1.0, 2.0 ** (math.frexp(spec.format.smallest)[1] - 1))
    return max(floor, spec.scale.smallest)


def scale_of_zeros(spec: Spec) -> float:
    """Returns the scale of a block of zeros: 1, where the codes are zero whatever it is.

    The smallest scale where the format has no zero, so that its levels stand for next to nothing; and where scales are
    themselves quantized, because a 1 among small scales would spoil their grid.
    """
    return 1.0 if spec.scale.spec is None and spec.format.has_zero else smallest_scale(spec)


def largest_scale(spec: Spec) -> float:
    """Returns the largest scale of a spec: 2**126, or what its storage can hold."""
    return spec.scale.largest


def bounded(scale: Float[Array, "..."], spec: Spec) -> Float[Array, "..."]:
    """Returns ``scale`` with a magnitude between `smallest_scale` and `largest_scale`; its sign is kept where a spec has signs."""
    size = jnp.abs(scale) if spec.has_signed_scales else scale
    size = at_most(at_least(size, smallest_scale(spec)), largest_scale(spec))
    return jnp.where(scale < 0, -size, size) if spec.has_signed_scales else size


def signed_step(step: Float[Array, "..."], spec: Spec) -> Float[Array, "..."]:
    """Returns a learned step as a scale: as it is where the spec has signed scales, else its magnitude."""
    return step if spec.has_signed_scales else jnp.abs(step)


def check_positive(spec: Spec, who: str) -> None:
    """Raises ValueError where a method that finds positive scales is given a spec whose scales have signs."""
    if spec.has_signed_scales:
        raise ValueError(f"{who} finds positive scales, got {spec.text}; rtn and lsq take signed ones")


def stored_scale(
    scale: Float[Array, "..."] | QTensor, spec: Spec, operand: Operand | None = None
) -> Float[Array, "..."] | QTensor:
    """Returns ``scale`` as it will be stored: within its bounds, and rounded to what ``spec.scale`` holds.

    ``bfloat16`` and ``float16`` round to nearest, ties to even; ``e8m0`` takes the next power of two up, so that a
    learned scale never saturates (the scales of MX range rules are powers of two already and stay); ``e4m3``, ``dq`` and
    integers quantize the scales themselves. The gradient passes straight through the rounding.

    Args:
        scale: float array of the scale's shape, positive unless the spec has signed scales; a `QTensor` is stored already.
        spec: the static description.
        operand: what the scale belongs to: its ``stack`` leading axes share no scale of scales. None: no stack.

    Returns:
        float32 of the same shape; a `QTensor` of that shape where the scales are themselves quantized.
    """
    if isinstance(scale, QTensor):
        return scale
    return spec.scale.stored(bounded(scale.astype(jnp.float32), spec), operand)
