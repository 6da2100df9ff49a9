"""How far a quantized array is from the original."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def mean_squared_error(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns the mean of ``(x - y)**2``: float32, sums in two stages (rows, then their mean)."""
    return _mean(jnp.square(x.astype(jnp.float32) - y.astype(jnp.float32)))


def nmse(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns the normalised mean squared error ``sum (x - y)**2 / sum x**2`` of ``y`` against the reference ``x``.

    Example:
        >>> round(float(nmse(jnp.array([1.0, -2.0]), jnp.array([1.0, -1.0]))), 3)
        0.2
    """
    return mean_squared_error(x, y) / _mean(jnp.square(x.astype(jnp.float32)))


def sqnr_db(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns the signal to quantization noise ratio ``10 log10(sum x**2 / sum (x - y)**2)`` in dB; inf where equal.

    Reference: Krishnamoorthi, 2018, arXiv 1806.08342, appendix A.

    Example:
        >>> round(float(sqnr_db(jnp.array([1.0, -2.0]), jnp.array([1.0, -1.0]))), 2)
        6.99
    """
    return -10.0 * jnp.log10(nmse(x, y))


def decibels(signal: float, noise: float) -> float:
    """Returns ``10 log10(signal / noise)`` of two sums of squares: inf without noise, NaN without a signal to be heard.

    Example:
        >>> decibels(100.0, 1.0), decibels(1.0, 0.0), decibels(0.0, 1.0)
        (20.0, inf, nan)
    """
    if signal <= 0.0:
        return math.nan
    return math.inf if noise <= 0.0 else 10.0 * math.log10(signal / noise)


def cosine(x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, ""]:
    """Returns the cosine of the angle between ``x`` and ``y``, as float32 in [-1, 1].

    Example:
        >>> round(float(cosine(jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0]))), 4)
        0.7071
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    norm = jnp.sqrt(_mean(jnp.square(x))) * jnp.sqrt(_mean(jnp.square(y)))
    return _mean(x * y) * (1.0 / norm)


def _mean(x: Float[Array, "..."]) -> Float[Array, ""]:
    """The mean, in stages along the axes, so that the float32 error grows with the longest axis, not with the size."""
    while x.ndim:
        x = jnp.mean(x, axis=-1)
    return x
