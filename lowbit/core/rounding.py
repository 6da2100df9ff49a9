"""Rounding, exact products and exact casts: the float operations whose last bit is a promise.

Two compiler habits break "what you train is what you serve", both measured on XLA:CPU (jax 0.10.2):

* ``a * b + c`` becomes one fused multiply-add whenever the product and the sum land in one fusion, so the same
  expression rounds once in one program and twice in another. ``lax.optimization_barrier`` and ``reduce_precision``
  do not stop it; a ``clamp`` to the finite range does, on every backend tried. See `rounded_product`.
* ``x / broadcast(s)`` becomes ``x * (1 / s)``, on XLA:CPU but not elsewhere. lowbit therefore writes the reciprocal
  out: ``round(x * (1 / s))``, the same number everywhere.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_LARGEST = float(jnp.finfo(jnp.float32).max)

SMALLEST_SCALE = 2.0**-126
"""Scales are not smaller than this (the smallest normal float32), so that ``1 / scale`` is finite."""


@jax.custom_jvp
def nearest_even(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns ``x`` rounded to the nearest integer, ties to even; the gradient passes straight through.

    Example:
        >>> nearest_even(jnp.array([0.5, 1.5, -2.5])).tolist()
        [0.0, 2.0, -2.0]
    """
    return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)


@jax.custom_jvp
def half_away(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns ``x`` rounded to the nearest integer, ties away from zero; the gradient passes straight through.

    Example:
        >>> half_away(jnp.array([0.5, 1.5, -2.5])).tolist()
        [1.0, 2.0, -3.0]
    """
    return lax.round(x, lax.RoundingMethod.AWAY_FROM_ZERO)


@jax.custom_jvp
def unfused(product: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns ``product`` unchanged where finite, in a form that no compiler merges into a fused multiply-add.

    Infinities saturate to the largest finite value; NaN stays NaN. The gradient is one everywhere.
    """
    if product.dtype == jnp.float32:
        return lax.clamp(jnp.float32(-_LARGEST), product, jnp.float32(_LARGEST))
    return product


for _identity in (nearest_even, half_away, unfused):
    _identity.defjvps(lambda tangent, _, x: tangent)


def rounded_product(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns ``a * b`` in float32, rounded once, whatever sum the compiler fuses it into."""
    return unfused(a * b)


def clip_between(
    x: Float[Array, "..."], low: Float[Array, "..."] | float, high: Float[Array, "..."] | float
) -> Float[Array, "..."]:
    """Returns ``x`` clipped to ``[low, high]``; the gradient to ``x`` passes only strictly inside, else to the bound.

    Differs from `jax.numpy.clip`, whose gradient is one half on the bound: LSQ (Esser et al., 2020, Eq. 3) needs a
    strict inside.
    """
    low, high = jnp.asarray(low, x.dtype), jnp.asarray(high, x.dtype)
    return jnp.where(x <= low, low, jnp.where(x >= high, high, x))


def cast_once(x: Float[Array, "..."], dtype: jax.typing.DTypeLike) -> Float[Array, "..."]:
    """Returns ``x`` (float32) in ``dtype``, rounded even where XLA would keep the wider value.

    With ``xla_allow_excess_precision`` (the default) a float32 -> bfloat16 -> float32 pair of casts is dropped;
    the explicit `lax.reduce_precision` is not.
    """
    if jnp.dtype(dtype) == jnp.bfloat16 and x.dtype == jnp.float32:
        x = lax.reduce_precision(x, 8, 7)
    return x.astype(dtype)


def settled(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns ``x`` unchanged; where it is bfloat16, rounded to it even where XLA kept the float32 that it was computed in.

    What reads it in one program then reads what another program reads that is given it as an array.
    """
    return cast_once(x.astype(jnp.float32), x.dtype) if x.dtype == jnp.bfloat16 else x


def widened(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns ``x`` in float32; of bfloat16 its own value, where XLA would keep that of before the cast to bfloat16.

    A kernel reads what is stored, and a fused loop what it has: ``gelu(x @ w)`` in bfloat16 was rounded to other codes there.
    """
    return settled(x).astype(jnp.float32)


def stochastic(x: Float[Array, "..."], key: Array) -> Float[Array, "..."]:
    """Returns ``x`` rounded up or down at random, up with probability ``x - floor(x)``; gradient straight through.

    Args:
        x: any shape, float32.
        key: a typed key (`jax.random.key`).
    """
    noise = jax.random.uniform(key, x.shape, x.dtype)
    return x + lax.stop_gradient(jnp.floor(x + noise) - x)
