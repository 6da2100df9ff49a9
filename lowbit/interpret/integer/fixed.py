"""Fixed-point multiplication: an int32 accumulator times a real number, rounded to an integer, without floats.

A real multiplier is ``q * 2**-31 * 2**-right`` with a 32-bit integer ``q``. The product ``accumulator * q`` has 64 bits;
it is held as two 32-bit words, so that nothing here needs 64-bit integers (JAX has them switched off by default, and a
small microcontroller has none). How the product is cut back to an integer is the *named rounding*:

* ``exact``: round half to even of the true product, once;
* ``tflite_single``: round half up of the true product, once (TensorFlow Lite's single rounding);
* ``gemmlowp_double``: rounded to 32 bits first, half up, then shifted, half away from zero: twice. It differs from one
  rounding with probability ``2**-(right + 1)``, by one.

Reference: Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only inference,
2017, https://arxiv.org/abs/1712.05877, Eqs. (5) and (6), and its implementation in gemmlowp.
"""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

_LARGEST = 2**31 - 1
_BOUND = 2**30
"""Results saturate here; grids of 8 bits lie far inside."""

_MOST_LEFT, _MOST_RIGHT = 30, 31

Words = tuple[Int32[Array, "..."], Int32[Array, "..."]]
"""A signed 64-bit integer: high word, low word (its bits)."""


def fixed_point(multiplier: float) -> tuple[int, int]:
    """Returns ``(q, right)`` of a Python float: ``multiplier ~ q * 2**-31 * 2**-right``, ``2**30 <= |q| < 2**31``.

    Too small a multiplier becomes 0, too large a one the largest.

    Example:
        >>> fixed_point(0.3), fixed_point(2.0**-8)
        ((1288490189, 1), (1073741824, 7))
    """
    fraction, exponent = math.frexp(multiplier)
    q = round(fraction * 2.0**31)
    if abs(q) == 2**31:
        q, exponent = q // 2, exponent + 1
    if q == 0 or exponent < -_MOST_RIGHT:
        return 0, 0
    if exponent > _MOST_LEFT:
        return int(math.copysign(_LARGEST, q)), -_MOST_LEFT
    return q, -exponent


def fixed_points(multiplier: Float[Array, "..."]) -> tuple[Int32[Array, "..."], Int32[Array, "..."]]:
    """Returns ``(q, right)`` of float32 multipliers, exactly: by their bits. Otherwise as `fixed_point`.

    Example:
        >>> [int(x) for x in fixed_points(jnp.float32(-0.75))]
        [-1610612736, 0]
    """
    bits = lax.bitcast_convert_type(multiplier.astype(jnp.float32), jnp.int32)
    exponent = ((bits >> 23) & 0xFF) - 126
    q = ((bits & 0x7FFFFF) | 0x800000) << 7
    q = jnp.where(exponent > _MOST_LEFT, _LARGEST, q)
    q = jnp.where(bits < 0, -q, q)
    is_zero = exponent < -_MOST_RIGHT
    right = -jnp.clip(exponent, -_MOST_RIGHT, _MOST_LEFT)
    return jnp.where(is_zero, 0, q), jnp.where(is_zero, 0, right)


def wide_product(a: Int32[Array, "..."], b: Int32[Array, "..."]) -> Words:
    """Returns ``a * b`` in 64 bits (Warren, Hacker's Delight, 2nd ed., section 8-2).

    Example:
        >>> [int(x) for x in wide_product(jnp.int32(-3), jnp.int32(2**30))]
        [-1, 1073741824]
    """
    a_low, a_high = a & 0xFFFF, a >> 16
    b_low, b_high = b & 0xFFFF, b >> 16
    low = a_low * b_low
    middle = a_high * b_low + _logical(low, 16)
    cross = a_low * b_high + (middle & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (cross >> 16), a * b


def _logical(x: Array, count: Array | int) -> Array:
    count = jnp.broadcast_to(jnp.asarray(count, jnp.int32), x.shape)
    return lax.shift_right_logical(x, count)


def _floor(words: Words, s: Array) -> Array:
    """``floor(words / 2**s)`` for ``1 <= s <= 62``, saturated to int32. No shift passes 31."""
    high, low = words
    small = jnp.clip(s, 1, 31)
    joined = _logical(low, small) | (high << (32 - small))
    upper = high >> small
    joined = jnp.where(upper == joined >> 31, joined, (high >> 31) ^ _LARGEST)
    return jnp.where(s < 32, joined, high >> jnp.clip(s - 32, 0, 31))


def _bit(words: Words, at: Array) -> Array:
    high, low = words
    return jnp.where(at < 32, _logical(low, jnp.clip(at, 0, 31)), high >> jnp.clip(at - 32, 0, 31)) & 1


def _mask(count: Array) -> Array:
    """``count`` low ones, 0 to 32."""
    some = (jnp.int32(1) << jnp.clip(count, 0, 31)) - 1
    return jnp.where(count >= 32, -1, some)


def _has_below(words: Words, at: Array) -> Array:
    """1 where any of the bits under ``at`` is set."""
    high, low = words
    rest = (low & _mask(at)) | (high & _mask(jnp.maximum(at - 32, 0)))
    return (rest != 0).astype(jnp.int32)


def _prepared(acc: Array, q: Array, right: Array) -> tuple[Words, Array]:
    """The product, and the shift with the same rank. Neither multiplier nor shift is spread over the accumulator's shape.

    What is computed of them alone would be spread too, and an exported program would hold it as constants of that shape.
    """
    rank = len(jnp.broadcast_shapes(acc.shape, q.shape, right.shape))
    acc, q, right = (x.reshape((1,) * (rank - x.ndim) + x.shape) for x in (acc, q, right))
    return wide_product(acc, q), right


def _saturated(x: Array) -> Array:
    return jnp.clip(x, -_BOUND, _BOUND)


def _exact(acc: Array, q: Array, right: Array) -> Array:
    words, right = _prepared(acc, q, right)
    s = right + 31
    floor = jnp.clip(_floor(words, s), -_BOUND - 1, _BOUND)
    return _saturated(floor + (_bit(words, s - 1) & (_has_below(words, s - 1) | (floor & 1))))


def _single(acc: Array, q: Array, right: Array) -> Array:
    words, right = _prepared(acc, q, right)
    s = right + 31
    return _saturated(jnp.clip(_floor(words, s), -_BOUND - 1, _BOUND) + _bit(words, s - 1))


def _double(acc: Array, q: Array, right: Array) -> Array:
    left = jnp.clip(-right, 0, _MOST_LEFT)
    most = jnp.int32(_LARGEST) >> left
    words, right = _prepared(jnp.clip(acc, -most, most) << left, q, right)
    doubled = _floor(words, jnp.full_like(right, 31)) + _bit(
        words, jnp.full_like(right, 30)
    )  # below 2**31 in magnitude
    return _saturated(_shift_away(doubled, jnp.clip(right, 0, 31)))


def _shift_even(x: Array, k: Array) -> Array:
    floor, at = x >> k, jnp.maximum(k - 1, 0)
    half = (x >> at) & 1
    below = ((x & ((jnp.int32(1) << at) - 1)) != 0).astype(jnp.int32)
    return jnp.where(k == 0, x, floor + (half & (below | (floor & 1))))


def _shift_up(x: Array, k: Array) -> Array:
    return jnp.where(k == 0, x, (x >> k) + ((x >> jnp.maximum(k - 1, 0)) & 1))


def _shift_away(x: Array, k: Array) -> Array:
    """RoundingDivideByPOT of gemmlowp: half away from zero."""
    mask = (jnp.int32(1) << jnp.clip(k, 0, 30)) - 1
    mask = jnp.where(k > 30, _LARGEST, mask)
    threshold = (mask >> 1) + (x < 0).astype(jnp.int32)
    return (x >> k) + ((x & mask) > threshold).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Rounding:
    """A named way back to an integer.

    Attributes:
        name: as plans and manifests have it.
        multiply: ``(accumulator, q, right) -> round(accumulator * q * 2**-31 * 2**-right)``, int32, saturated at 2**30.
        shift: ``(x, k) -> round(x * 2**-k)`` for ``0 <= k <= 31``.
    """

    name: str
    multiply: Callable[[Array, Array, Array], Array]
    shift: Callable[[Array, Array], Array]


ROUNDINGS = {
    rounding.name: rounding
    for rounding in (
        Rounding("exact", _exact, _shift_even),
        Rounding("tflite_single", _single, _shift_up),
        Rounding("gemmlowp_double", _double, _shift_away),
    )
}
"""By name."""


def rounding_named(name: str) -> Rounding:
    """Returns the rounding of this name.

    Raises:
        ValueError: if there is none.

    Example:
        >>> half = (jnp.int32(3), *(jnp.int32(n) for n in fixed_point(0.5)))
        >>> [int(rounding_named(name).multiply(*half)) for name in ("exact", "tflite_single")]
        [2, 2]
    """
    if name not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {name!r}")
    return ROUNDINGS[name]
