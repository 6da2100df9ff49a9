"""Products of 16-bit codes: sums that pass 32 bits.

Grids of 16 bits have zero point 0, as TensorFlow Lite's 16x8 scheme has it, so that a product of two codes fits 32 bits.

A dot or convolution is taken on the two bytes of a code, ``256 * high + low`` with ``low`` from 0 to 255: two sums of 8-bit
products in int32, which every backend has. Together they are a long accumulator (`lowbit.interpret.integer.fixed.Long`),
exact for up to 65536 products.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from lowbit.program.read import Equation

from . import compute
from .fixed import Long, Rounding

MOST = 2.0**38
"""A sum of products may reach this; with its bias it stays below 2**39."""


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


def multiply_long(
    equation: Equation, codes: Sequence[Array], zeros: Sequence[Array], reaches: Sequence[float], *, carried: bool
) -> Long:
    """Returns the accumulator of a dot or convolution, one of whose operands has 16 bits: arguments as `compute.multiply_pair`."""
    high = low = jnp.int32(0)
    left, right = (_parts(*operand) for operand in zip(codes, zeros, reaches, strict=True))
    for a in left:
        for b in right:
            pair = [a.codes, b.codes], [a.zero, b.zero], [a.reach, b.reach]
            product = compute.multiply_pair(equation, *pair, carried=carried)
            if a.power + b.power == 0:
                low = product
            else:
                high = high + (product << 8 * (a.power + b.power - 1))
    return high, low


def linear(acc: Long, c: Mapping[str, Any], rounding: Rounding, dtype: DTypeLike) -> compute.CodeArray:
    """Returns the codes of a long accumulator: bias, multiplier, offset, bounds."""
    biased = acc[0] + c["bias_high"], acc[1] + c["bias"]
    return compute.clamped(rounding.multiply_long(biased, c["multiplier"], c["shift"]) + c["offset"], c, dtype)
