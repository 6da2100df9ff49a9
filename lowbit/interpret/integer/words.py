"""Signed 64-bit integers as two 32-bit words, in 32-bit operations.

JAX has 64-bit integers switched off by default, and a small microcontroller has none. Everything wraps, as integers do.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32

LARGEST = 2**31 - 1

Words = tuple[Int32[Array, "..."], Int32[Array, "..."]]
"""High word, low word (its bits)."""


def wide_product(a: Int32[Array, "..."], b: Int32[Array, "..."]) -> Words:
    """Returns ``a * b`` in 64 bits (Warren, Hacker's Delight, 2nd ed., section 8-2).

    Example:
        >>> [int(x) for x in wide_product(jnp.int32(-3), jnp.int32(2**30))]
        [-1, 1073741824]
    """
    a_low, a_high = a & 0xFFFF, a >> 16
    b_low, b_high = b & 0xFFFF, b >> 16
    low = a_low * b_low
    middle = a_high * b_low + logical(low, 16)
    cross = a_low * b_high + (middle & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (cross >> 16), a * b


def widened(x: Int32[Array, "..."]) -> Words:
    """Returns a 32-bit integer in 64 bits."""
    return x >> 31, x


def added(a: Words, b: Words) -> Words:
    """Returns ``a + b``.

    Example:
        >>> [int(x) for x in added(widened(jnp.int32(-1)), widened(jnp.int32(1)))]
        [0, 0]
    """
    low = a[1] + b[1]
    return a[0] + b[0] + _is_below(low, b[1]).astype(jnp.int32), low


def doubled(words: Words) -> Words:
    """Returns ``2 * words``."""
    high, low = words
    return (high << 1) | logical(low, 31), low << 1


def shifted(words: Words, s: Array) -> Words:
    """Returns ``floor(words / 2**s)`` for ``1 <= s <= 62``. No shift passes 31."""
    high, low = words
    small = jnp.clip(s, 1, 31)
    near = logical(low, small) | (high << (32 - small))
    is_near = s < 32
    upper = jnp.where(is_near, high >> small, high >> 31)
    return upper, jnp.where(is_near, near, high >> jnp.clip(s - 32, 0, 31))


def saturated(words: Words) -> Int32[Array, "..."]:
    """Returns the nearest 32-bit integer."""
    high, low = words
    return jnp.where(high == low >> 31, low, (high >> 31) ^ LARGEST)


def floor_shift(words: Words, s: Array) -> Int32[Array, "..."]:
    """Returns ``floor(words / 2**s)`` for ``1 <= s <= 62``, saturated to int32."""
    high, low = words
    small = jnp.clip(s, 1, 31)
    joined = logical(low, small) | (high << (32 - small))
    upper = high >> small
    joined = jnp.where(upper == joined >> 31, joined, (high >> 31) ^ LARGEST)
    return jnp.where(s < 32, joined, high >> jnp.clip(s - 32, 0, 31))


def bit(words: Words, at: Array) -> Int32[Array, "..."]:
    """Returns one bit, 0 to 63."""
    high, low = words
    return jnp.where(at < 32, logical(low, jnp.clip(at, 0, 31)), high >> jnp.clip(at - 32, 0, 31)) & 1


def has_below(words: Words, at: Array) -> Int32[Array, "..."]:
    """Returns 1 where any of the bits under ``at`` is set."""
    high, low = words
    rest = (low & _mask(at)) | (high & _mask(jnp.maximum(at - 32, 0)))
    return (rest != 0).astype(jnp.int32)


def logical(x: Array, count: Array | int) -> Array:
    """Returns ``x`` shifted right, zeros coming in."""
    count = jnp.broadcast_to(jnp.asarray(count, jnp.int32), x.shape)
    return lax.shift_right_logical(x, count)


def _mask(count: Array) -> Array:
    """``count`` low ones, 0 to 32."""
    some = (jnp.int32(1) << jnp.clip(count, 0, 31)) - 1
    return jnp.where(count >= 32, -1, some)


def _is_below(a: Array, b: Array) -> Bool[Array, "..."]:
    """Whether ``a < b`` as integers without sign."""
    sign = jnp.int32(-(2**31))
    return (a ^ sign) < (b ^ sign)
