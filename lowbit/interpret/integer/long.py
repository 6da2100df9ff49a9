"""Arithmetic of 16-bit codes: sums that pass 32 bits, and functions of 65536 arguments.

Grids of 16 bits have zero point 0, as TensorFlow Lite's 16x8 scheme has it, so that a product of two codes fits 32 bits.

* A dot or convolution is taken on the two bytes of a code, ``256 * high + low`` with ``low`` from 0 to 255: two sums of 8-bit
  products in int32, which every backend has. Together they are a long accumulator (`lowbit.interpret.integer.fixed.Long`),
  exact for up to 65536 products.
* An elementwise function is 512 parabolas, one for 128 codes: exact to half a step at the ends of a piece and in its middle,
  a line where the function is one. 2 kB, where a table of all arguments takes 128 kB.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Integer

from lowbit.program.read import Equation

from . import compute
from .fixed import Long, Rounding, long_words
from .nodes import Node

MOST = 2.0**38
"""A sum of products may reach this; with its bias it stays below 2**39."""

PIECE_BITS = 7
PIECES = 2 ** (16 - PIECE_BITS)
"""An elementwise function of 16-bit codes is cut into 512 pieces of 128 codes."""

BEND_BITS = 2
"""What a piece's middle lies above the line between its ends is kept in quarters of a step."""


class _Part(NamedTuple):
    """8 bits of an operand.

    Attributes:
        codes: int8.
        zero: what stands for 0.
        reach: the largest magnitude of ``code - zero``.
        power: it counts ``256**power``.
    """

    codes: Array
    zero: Array
    reach: float
    power: int


def _parts(codes: Array, zero: Array, reach: float) -> list[_Part]:
    if codes.dtype != jnp.int16:
        return [_Part(codes, zero, reach, 0)]
    high, low = (codes >> 8).astype(jnp.int8), ((codes & 255) - 128).astype(jnp.int8)
    return [_Part(high, jnp.int32(0), 128.0, 1), _Part(low, jnp.int32(-128), 255.0, 0)]


def matmul(
    equation: Equation, codes: Sequence[Array], zeros: Sequence[Array], reaches: Sequence[float], *, carried: bool
) -> Long:
    """Returns the accumulator of a dot or convolution, one of whose operands has 16 bits: arguments as `compute.matmul`."""
    high = low = jnp.int32(0)
    left, right = (_parts(*operand) for operand in zip(codes, zeros, reaches, strict=True))
    for a in left:
        for b in right:
            pair = [a.codes, b.codes], [a.zero, b.zero], [a.reach, b.reach]
            found = compute.matmul(equation, *pair, carried=carried)
            if a.power + b.power == 0:
                low = found
            else:
                high = high + (found << 8 * (a.power + b.power - 1))
    return high, low


def linear(acc: Long, c: Mapping[str, Any], rounding: Rounding, dtype: Any) -> compute.CodeArray:
    """Returns the codes of a long accumulator: bias, multiplier, offset, bounds."""
    biased = acc[0] + c["bias_high"], acc[1] + c["bias"]
    return compute.clamped(rounding.multiply_long(biased, c["multiplier"], c["shift"]) + c["offset"], c, dtype)


def added(
    node: Node, codes: Sequence[Array], zeros: Sequence[Array], c: Mapping[str, Any], rounding: Rounding, dtype: Any
) -> compute.CodeArray:
    """Returns `compute.added` of two tensors, one of which has 16 bits: their products are long."""
    wide = [x.astype(jnp.int32) - z for x, z in zip(codes, zeros, strict=True)]
    parts = [((x >> 8) * c[name], (x & 255) * c[name]) for x, name in zip(wide, ("left", "right"), strict=True)]
    if node.kind == "add":
        words = long_words((parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]))
        cut = rounding.shift_words(words, c["shift"])
    else:  # rounding keeps the order
        join = {"max": jnp.maximum, "min": jnp.minimum}[node.kind]
        cut = join(*(rounding.shift_words(long_words(part), c["shift"]) for part in parts))
    return compute.clamped(cut + c["offset"], c, dtype)


def interpolated(codes: Integer[Array, "..."], c: Mapping[str, Any], dtype: Any) -> compute.CodeArray:
    """Returns a function of 16-bit codes: the line between the ends of a piece, and a parabola on it, rounded half up.

    ``y = (y0 + (y1 - y0) * k / 128) + bend * k * (128 - k) / 4096`` for the ``k``-th code of a piece, ``bend`` being what the
    middle lies above the line.
    """
    wide = codes.astype(jnp.int32)
    piece, k = (wide >> PIECE_BITS) + PIECES // 2, wide & (2**PIECE_BITS - 1)
    ends, bends = (c[name].astype(jnp.int32) for name in ("ends", "bends"))
    first, last, bend = (
        jnp.take(x, i, axis=0, mode="clip") for x, i in ((ends, piece), (ends, piece + 1), (bends, piece))
    )
    line = (first << PIECE_BITS) + (last - first) * k
    curve = bend * (k * (2**PIECE_BITS - k))
    point = PIECE_BITS + PIECE_BITS - 2 + BEND_BITS  # of the curve: k * (128 - k) is 4096 in the middle
    y = ((line << (point - PIECE_BITS)) + curve + (1 << (point - 1))) >> point
    return compute.clamped(y, c, dtype)
