"""Powers of two, by exponent arithmetic: the scales of the OCP microscaling formats.

A cast to e8m0 is never used to *find* a scale: it rounds to the nearest power of two, which no published scale rule
does. Here the exponent field of the float32 is read and written, so every result is exact.
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .extremes import at_most, nan_where

SCALE_RULES = ("floor", "ceil", "even")
"""Names of the rules of `power_of_two_scale`."""

_LOWEST, _HIGHEST = -126, 127


def exponent(x: Float[Array, "..."]) -> Int[Array, "..."]:
    """Returns ``floor(log2(|x|))`` as int32, exactly, of normal float32; -127 for zero and subnormals, 128 for inf, NaN.

    Example:
        >>> exponent(jnp.array([1.0, 1.9999999, 2.0, 0.3])).tolist()
        [0, 0, 1, -2]
    """
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return ((bits >> 23) & 0xFF) - 127


def power_of_two(k: Int[Array, "..."]) -> Float[Array, "..."]:
    """Returns ``2.0**k`` in float32, exactly; ``k`` is clipped to [-126, 127], the normal numbers.

    Example:
        >>> power_of_two(jnp.array([0, -3, 10])).tolist()
        [1.0, 0.125, 1024.0]
    """
    field = jnp.clip(k, _LOWEST, _HIGHEST).astype(jnp.int32) + 127
    return lax.bitcast_convert_type(field << 23, jnp.float32)


def ceil_power_of_two(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the smallest power of two that is not below ``x`` (positive float32), between 2**-126 and 2**127.

    A power of two is its own result, so the function is idempotent. NaN stays NaN.

    Example:
        >>> ceil_power_of_two(jnp.array([1.0, 1.1, 0.26])).tolist()
        [1.0, 2.0, 0.5]
    """
    x = x.astype(jnp.float32)
    has_mantissa = (lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFF) != 0
    return nan_where(jnp.isnan(x), power_of_two(exponent(x) + has_mantissa.astype(jnp.int32)))


def power_of_two_scale(
    amax: Float[Array, "..."], top: float, *, rule: str = "floor", mantissa_bits: int = 0
) -> Float[Array, "..."]:
    """Returns the power-of-two scale of blocks whose largest magnitude is ``amax``, for a largest level ``top``.

    * ``floor``: ``2**(floor(log2 amax) - floor(log2 top))``, OCP Microscaling Formats (MX) v1.0, section 6.3: values
      above ``top * scale`` saturate;
    * ``ceil``: ``2**ceil(log2(amax / top))``: nothing saturates;
    * ``even``: ``amax`` is first rounded to the element's mantissa, half up, then ``floor``.

    A block of zeros gets scale 1; NaN stays NaN; infinities count as the largest finite value.

    Args:
        amax: non-negative, any shape; computed in float32 exponent arithmetic.
        top: the largest level of the element format.
        rule: one of `SCALE_RULES`.
        mantissa_bits: stored mantissa bits of the element format; read by ``even`` alone.

    Returns:
        float32 powers of two between 2**-126 and 2**127, of the shape of ``amax``.

    Raises:
        ValueError: for an unknown rule.

    Example:
        >>> [float(power_of_two_scale(jnp.float32(7.0), 6.0, rule=r, mantissa_bits=1)) for r in SCALE_RULES]
        [1.0, 2.0, 2.0]
    """
    check_scale_rule(rule)
    amax = amax.astype(jnp.float32)
    finite = at_most(amax, float(jnp.finfo(jnp.float32).max))
    top_fraction, top_exponent = math.frexp(top)
    top_exponent -= 1  # top == 2 * top_fraction * 2**top_exponent
    bits = lax.bitcast_convert_type(finite, jnp.int32)
    if rule == "even":
        bits = bits + (
            1 << (22 - mantissa_bits)
        )  # half a unit of the last kept mantissa bit; carries into the exponent
    k = ((bits >> 23) & 0xFF) - 127 - top_exponent
    if rule == "ceil":
        top_mantissa = int((2.0 * top_fraction - 1.0) * 2**23)
        k = k + ((bits & 0x7FFFFF) > top_mantissa).astype(jnp.int32)
    scale = jnp.where(finite == 0, 1.0, power_of_two(k))
    return nan_where(jnp.isnan(amax), scale.astype(jnp.float32))


def check_scale_rule(rule: str) -> None:
    """Raises ValueError unless ``rule`` is one of `SCALE_RULES`."""
    if rule not in SCALE_RULES:
        raise ValueError(f"the scale rule must be one of {', '.join(SCALE_RULES)}, got {rule!r}")
