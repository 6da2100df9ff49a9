"""Fixed-point multiplication: an int32 accumulator times a real number, rounded to an integer, without floats.

A real multiplier is ``q * 2**-31 * 2**-right`` with a 32-bit integer ``q``. The product ``accumulator * q`` has 64 bits;
it is held as two 32-bit words (`lowbit.interpret.integer.words`). How it is cut back to an integer is the *named rounding*:

* ``exact``: round half to even of the true product, once;
* ``tflite_single``: round half up of the true product, once (TensorFlow Lite's single rounding);
* ``gemmlowp_double``: rounded to 32 bits first, half up, then shifted, half away from zero: twice. It differs from one
  rounding with probability ``2**-(right + 1)``, by one.

Sums of 16-bit inputs pass 32 bits: a *long* accumulator is ``(high, low)``, two int32 numbers that stand for
``256 * high + low``, below 2**39 in magnitude. The multipliers are float32 numbers, so ``q`` has 24 bits that are not zero,
and the product fits 64.

Reference: Jacob et al., Quantization and training of neural networks for efficient integer-arithmetic-only inference,
2017, https://arxiv.org/abs/1712.05877, Eqs. (5) and (6), and its implementation in gemmlowp.
"""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from .words import LARGEST as _LARGEST
from .words import Words, added, bit, doubled, floor_shift, has_below, saturated, shifted, wide_product, widened

_BOUND = 2**30
"""Results saturate here; grids of 8 and 16 bits lie far inside."""

_MOST_LEFT, _MOST_RIGHT = 30, 31
_MOST_LEFT_OF_LONG = 22
"""Multipliers of long accumulators from 2**22 on are cut: times 1 they are far outside of every grid already."""

Long = tuple[Int32[Array, "..."], Int32[Array, "..."]]
"""A long accumulator ``(high, low)``: ``256 * high + low``."""


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


def _prepared(acc: Array, q: Array, right: Array) -> tuple[Words, Array]:
    """The product, and the shift with the same rank. Neither multiplier nor shift is spread over the accumulator's shape.

    What is computed of them alone would be spread too, and an exported program would hold it as constants of that shape.
    """
    rank = len(jnp.broadcast_shapes(acc.shape, q.shape, right.shape))
    acc, q, right = (x.reshape((1,) * (rank - x.ndim) + x.shape) for x in (acc, q, right))
    return wide_product(acc, q), right


def _saturated(x: Array) -> Array:
    return jnp.clip(x, -_BOUND, _BOUND)


def _even(words: Words, s: Array) -> Array:
    floor = jnp.clip(floor_shift(words, s), -_BOUND - 1, _BOUND)
    return _saturated(floor + (bit(words, s - 1) & (has_below(words, s - 1) | (floor & 1))))


def _up(words: Words, s: Array) -> Array:
    return _saturated(jnp.clip(floor_shift(words, s), -_BOUND - 1, _BOUND) + bit(words, s - 1))


def _away(words: Words, s: Array) -> Array:
    """``words / 2**s``, half away from zero; ``s`` may be 0."""
    at = jnp.maximum(s, 1)
    half = jnp.int32(1) << jnp.clip(at - 1, 0, 30)  # never above 2**30: s is at most 31
    nudged = added(words, widened(half + (words[0] >> 31)))
    return _saturated(jnp.where(s == 0, saturated(words), floor_shift(nudged, at)))


def _exact(acc: Array, q: Array, right: Array) -> Array:
    words, right = _prepared(acc, q, right)
    return _even(words, right + 31)


def _single(acc: Array, q: Array, right: Array) -> Array:
    words, right = _prepared(acc, q, right)
    return _up(words, right + 31)


def _double(acc: Array, q: Array, right: Array) -> Array:
    left = jnp.clip(-right, 0, _MOST_LEFT)
    most = jnp.int32(_LARGEST) >> left
    words, right = _prepared(jnp.clip(acc, -most, most) << left, q, right)
    high = floor_shift(words, jnp.full_like(right, 31)) + bit(words, jnp.full_like(right, 30))  # below 2**31
    return _saturated(_shift_away(high, jnp.clip(right, 0, 31)))


def long_words(acc: Long) -> Words:
    """Returns a long accumulator in 64 bits.

    Example:
        >>> [int(x) for x in long_words((jnp.int32(2**30), jnp.int32(-1)))]
        [63, -1]
    """
    high, low = acc
    return added((high >> 24, high << 8), widened(low))


def _long_product(acc: Long, q: Array, right: Array) -> tuple[Words, Array]:
    """``(256 * high + low) * m`` with the 24 bits ``m`` of a multiplier, and ``right`` with ``2**-24`` in it."""
    rank = max(len(x.shape) for x in (*acc, q, right))
    high, low, q, right = (x.reshape((1,) * (rank - x.ndim) + x.shape) for x in (*acc, q, right))
    m = q >> 7
    return added(doubled(wide_product(high, m << 7)), wide_product(low, m)), jnp.maximum(right, -_MOST_LEFT_OF_LONG)


def _exact_of_long(acc: Long, q: Array, right: Array) -> Array:
    words, right = _long_product(acc, q, right)
    return _even(words, right + 24)


def _single_of_long(acc: Long, q: Array, right: Array) -> Array:
    words, right = _long_product(acc, q, right)
    return _up(words, right + 24)


def _double_of_long(acc: Long, q: Array, right: Array) -> Array:
    words, right = _long_product(acc, q, right)
    first = 24 - jnp.maximum(-right, 0)
    rounded = shifted(added(words, widened(jnp.int32(1) << (first - 1))), first)
    return _away(rounded, jnp.maximum(right, 0))


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
        multiply_long: `multiply` of a long accumulator.
        shift_words: `shift` of 64 bits, for ``1 <= k <= 31``, saturated at 2**30.
    """

    name: str
    multiply: Callable[[Array, Array, Array], Array]
    shift: Callable[[Array, Array], Array]
    multiply_long: Callable[[Long, Array, Array], Array]
    shift_words: Callable[[Words, Array], Array]


ROUNDINGS = {
    rounding.name: rounding
    for rounding in (
        Rounding("exact", _exact, _shift_even, _exact_of_long, _even),
        Rounding("tflite_single", _single, _shift_up, _single_of_long, _up),
        Rounding("gemmlowp_double", _double, _shift_away, _double_of_long, _away),
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
