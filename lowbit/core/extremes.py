"""Minimum, maximum and bounds that keep NaN.

XLA:CPU drops NaN where a minimum or maximum is fused into a vectorized loop (jax 0.10.2): ``jnp.max`` of an array with a
NaN is its largest other value, and ``jnp.sum(jnp.maximum(x, 0))`` is finite. One NaN would then be a whole tensor of
integers, and a diverged training run would keep a finite loss. So nothing in lowbit asks a compiler for the extreme of
floats: reductions compare the bit patterns as integers, in an order where NaN lies beyond infinity, and bounds are selects,
whose comparison NaN fails.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

_MAGNITUDE = 0x7FFFFFFF

Axes = int | Sequence[int] | None


def _ordered(x: Float[Array, "..."], nan: int) -> Int[Array, "..."]:
    """The bit patterns of float32 as integers of the same order; NaN, of either sign, is ``nan``. Its own inverse."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(jnp.isnan(x), nan, bits ^ ((bits >> 31) & _MAGNITUDE))


def _float_of(key: Int[Array, "..."]) -> Float[Array, "..."]:
    return lax.bitcast_convert_type(key ^ ((key >> 31) & _MAGNITUDE), jnp.float32)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _largest(x, axis, keepdims):
    return _float_of(jnp.max(_ordered(x, _MAGNITUDE), axis=axis, keepdims=keepdims))


@_largest.defjvp
def _(axis, keepdims, primals, tangents):
    _, tangent = jax.jvp(lambda x: jnp.max(x, axis=axis, keepdims=keepdims), primals, tangents)
    return _largest(*primals, axis, keepdims), tangent


def largest(x: Float[Array, "..."], axis: Axes = None, *, keepdims: bool = False) -> Float[Array, "..."]:
    """Returns the largest value along axes, in float32; NaN where there is one. Ties share the gradient.

    Example:
        >>> largest(jnp.array([[1.0, -2.0], [jnp.nan, 3.0]]), axis=1).tolist()
        [1.0, nan]
    """
    axis = tuple(axis) if isinstance(axis, Sequence) else axis
    return _largest(x.astype(jnp.float32), axis, keepdims)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _largest_magnitude(x, axis, keepdims):
    bits = lax.bitcast_convert_type(x, jnp.int32) & _MAGNITUDE
    return lax.bitcast_convert_type(jnp.max(bits, axis=axis, keepdims=keepdims), jnp.float32)


@_largest_magnitude.defjvp
def _(axis, keepdims, primals, tangents):
    _, tangent = jax.jvp(lambda x: jnp.max(jnp.abs(x), axis=axis, keepdims=keepdims), primals, tangents)
    return _largest_magnitude(*primals, axis, keepdims), tangent


def largest_magnitude(x: Float[Array, "..."], axis: Axes = None, *, keepdims: bool = False) -> Float[Array, "..."]:
    """Returns the largest ``|x|`` along axes, in float32; NaN where there is one. Ties share the gradient.

    Example:
        >>> largest_magnitude(jnp.array([[1.0, -2.0], [jnp.nan, 3.0]]), axis=1).tolist()
        [2.0, nan]
    """
    axis = tuple(axis) if isinstance(axis, Sequence) else axis
    return _largest_magnitude(x.astype(jnp.float32), axis, keepdims)


def smallest(x: Float[Array, "..."], axis: Axes = None, *, keepdims: bool = False) -> Float[Array, "..."]:
    """Returns the smallest value along axes, in float32; NaN where there is one.

    Example:
        >>> smallest(jnp.array([[1.0, -2.0], [jnp.nan, 3.0]]), axis=1).tolist()
        [-2.0, nan]
    """
    return -largest(-x, axis, keepdims=keepdims)


def larger(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the larger of two values, elementwise; NaN where either is.

    Example:
        >>> larger(jnp.array([1.0, jnp.nan, 1.0]), jnp.array([2.0, 2.0, jnp.nan])).tolist()
        [2.0, nan, nan]
    """
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def smaller(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the smaller of two values, elementwise; NaN where either is.

    Example:
        >>> smaller(jnp.array([1.0, jnp.nan, 1.0]), jnp.array([2.0, 2.0, jnp.nan])).tolist()
        [1.0, nan, nan]
    """
    return jnp.where((a <= b) | jnp.isnan(a), a, b)


def at_least(x: Float[Array, "..."], bound: float | Array) -> Float[Array, "..."]:
    """Returns ``x``, or ``bound`` where ``x`` is below it; NaN stays. On the bound the gradient goes to ``x``, whole.

    Example:
        >>> at_least(jnp.array([-1.0, 2.0, jnp.nan]), 0.0).tolist()
        [0.0, 2.0, nan]
    """
    return jnp.where(x < bound, jnp.asarray(bound, x.dtype), x)


def at_most(x: Float[Array, "..."], bound: float | Array) -> Float[Array, "..."]:
    """Returns ``x``, or ``bound`` where ``x`` is above it; NaN stays. On the bound the gradient goes to ``x``, whole.

    Example:
        >>> at_most(jnp.array([-1.0, 2.0, jnp.nan]), 0.0).tolist()
        [-1.0, 0.0, nan]
    """
    return jnp.where(x > bound, jnp.asarray(bound, x.dtype), x)


def has_not_finite(x: Float[Array, "..."], axis: Axes = None, *, keepdims: bool = False) -> Array:
    """Returns whether there is NaN or infinity along axes.

    Example:
        >>> has_not_finite(jnp.array([[1.0, -2.0], [jnp.inf, 3.0]]), axis=1).tolist()
        [False, True]
    """
    return jnp.any(~jnp.isfinite(x), axis=axis, keepdims=keepdims)


@jax.custom_jvp
def nan_where(mask: Bool[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns ``x`` with NaN where a mask, which broadcasts against it, is true.

    The NaN is made of the bits of ``x``. Of a select with the constant NaN, LLVM computes what follows for the constant alone;
    an exponential of it is undefined there, by its cast to an integer, and any number may come out: softmax lost every NaN.

    Example:
        >>> nan_where(jnp.array([True, False]), jnp.array([1.0, -0.0])).tolist()
        [nan, -0.0]
    """
    word = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    nan = jnp.asarray(np.array(np.nan, x.dtype).view(word))
    bits = lax.bitcast_convert_type(x, word)
    return lax.bitcast_convert_type(jnp.where(mask, bits | nan, bits), x.dtype)


@nan_where.defjvp
def _(primals, tangents):
    mask, x = primals
    return nan_where(mask, x), jnp.where(mask, jnp.zeros((), x.dtype), tangents[1])
