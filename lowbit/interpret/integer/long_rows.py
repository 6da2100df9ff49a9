"""Softmax and normalizations of 16-bit codes: what `compute` does with 8 bits, in the precision that 16 need."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32

from . import compute
from .nodes import Node
from .words import bit, floor_shift, wide_product

EXP_BITS = 24
"""An exponential is the product of two table entries, one per byte of the argument, integers up to 2**24."""

LONGEST_SOFTMAX = 2**13
LONGEST_NORM = 2**14
"""Elements of a row: more do not fit the sums."""

NORM_BITS = 24
"""A normalized value, divided by the square root of the number of features, has 24 bits after the point."""

_TOTAL_BITS, _PART_BITS = 27, 20


def softmax(
    codes: Int32[Array, "..."] | Any, c: Mapping[str, Any], axis: int, kept: Bool[Array, "..."] | None
) -> Int32[Array, "..."]:
    """Returns softmax along ``axis`` in steps of 2**-16: `compute.softmax` of 16-bit codes, exponentials of up to 20 bits."""
    wide = codes.astype(jnp.int32)
    if kept is not None:
        wide = jnp.where(kept, wide, jnp.iinfo(codes.dtype).min)
    below = jnp.max(wide, axis=axis, keepdims=True) - wide
    coarse = jnp.take(c["coarse"], below >> 8, axis=0, mode="clip")
    fine = jnp.take(c["fine"], below & 255, axis=0, mode="clip")
    product, _ = wide_product(coarse, fine << 6)  # 2**22 is 1
    width = min(_PART_BITS, _TOTAL_BITS - math.ceil(math.log2(codes.shape[axis])))
    parts = (product + (1 << (21 - width))) >> (22 - width)
    if kept is not None:
        parts = jnp.where(kept | ~jnp.any(kept, axis=axis, keepdims=True), parts, 0)
    total = jnp.broadcast_to(jnp.sum(parts, axis=axis, keepdims=True, dtype=jnp.int32), parts.shape)
    quotient, rest = _divided(parts, total, 4, 4)
    return quotient + (2 * rest >= total).astype(jnp.int32)


def _divided(rest: Array, by: Array, steps: int, bits: int) -> tuple[Array, Array]:
    """``(rest << steps * bits)`` divided by ``by``, some bits at a time, and what is left; ``by << bits`` fits 32 bits."""
    quotient = jnp.zeros_like(rest)
    for _ in range(steps):
        rest = rest << bits
        digit = lax.div(rest, by)
        quotient, rest = (quotient << bits) + digit, rest - digit * by
    return quotient, rest


def normalized(codes: Array, c: Mapping[str, Any], node: Node) -> Int32[Array, "..."]:
    """Returns ``c / sqrt(sum c**2 + epsilon)`` along the axis, in steps of 2**-24; ``c`` as in `compute.normalized`.

    The squares of 15-bit values are added in two numbers, ``2**15 * high + low``; the root has 29 bits, and every row divides
    once: by its reciprocal.
    """
    axis = node.details["axis"]
    x = codes.astype(jnp.int32)
    if node.details["is_centered"]:
        x = x.shape[axis] * x - jnp.sum(x, axis=axis, keepdims=True, dtype=jnp.int32)
    most = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    # most * 2**up has 15 bits, and the epsilon at most 44
    up = jnp.minimum(lax.clz(jnp.maximum(most, 1)) - 17, (20 - c["epsilon_shift"]) >> 1)
    t = _scaled(x, up)
    squares = t * t
    j = 2 * up + c["epsilon_shift"]
    low = jnp.sum(squares & 0x7FFF, axis=axis, keepdims=True, dtype=jnp.int32) + (_cut(c["epsilon"], j) & 0x7FFF)
    high = jnp.sum(squares >> 15, axis=axis, keepdims=True, dtype=jnp.int32) + _cut(c["epsilon"], j - 15)
    high, low = high + (low >> 15), low & 0x7FFF
    r = jnp.maximum(17 - lax.clz(high), 0)
    r = r + (r & 1)  # an even shift, after which the power has 29 or 30 bits
    power = jnp.where(r > 15, high >> 1, (high << jnp.clip(15 - r, 0, 15)) | (low >> r))
    power = jnp.maximum(power, 1)
    root = compute.square_root(power)
    rest = power - root * root
    fine = (root << 14) + lax.div(rest << 13, jnp.maximum(root, 1))
    inverse, _ = _divided(jnp.full_like(fine, 2**28), jnp.maximum(fine, 2**28), 15, 2)
    words = wide_product(_scaled(x, up + 15), jnp.broadcast_to(inverse, x.shape))
    shift = 59 - NORM_BITS + (r >> 1)
    return floor_shift(words, shift) + bit(words, shift - 1)


def _scaled(x: Array, up: Array) -> Array:
    """``x * 2**up``, rounded half up."""
    down = jnp.clip(-up, 1, 31)
    return jnp.where(up >= 0, x << jnp.clip(up, 0, 31), (x + (jnp.int32(1) << (down - 1))) >> down)


def _cut(x: Array, up: Array) -> Array:
    """``floor(x * 2**up)``."""
    return jnp.where(up >= 0, x << jnp.clip(up, 0, 31), x >> jnp.clip(-up, 0, 31))
