"""Layer and RMS norms: integer sums of squares, an integer square root, an integer quotient.

A normalized value, divided by the square root of the number of features, has 15 bits after the point, of 16-bit codes 24.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int32

from lowbit.core.powers import exponent
from lowbit.core.rounding import rounded_product
from lowbit.interpret.integer.compute import divided, square_root
from lowbit.interpret.integer.flat import Constants
from lowbit.interpret.integer.kind import Given, Taken
from lowbit.interpret.integer.linear import Template
from lowbit.interpret.integer.nodes import Details, Node
from lowbit.interpret.integer.placer import Placer
from lowbit.interpret.integer.words import bit, floor_shift, wide_product
from lowbit.packed.trees import Dropped
from lowbit.program.read import Equation, Value

LONGEST = 2**14
"""Elements of a row of 16-bit codes: more do not fit the sums."""


@dataclass(frozen=True, eq=False)
class Normalized(Details):
    """What a norm knows.

    Attributes:
        axis: along which it is.
        epsilon: what is added to the mean of squares.
        is_centered: whether the mean is subtracted.
    """

    axis: int
    epsilon: Value
    is_centered: bool


class Norm(Template):
    """A layer norm, or an RMS norm."""

    name = "norm"

    def detailed(self, equation: Equation, placer: Placer) -> Details:
        template = placer.templates[equation]
        assert template.epsilon is not None
        return Normalized(template.axis, template.epsilon, template.is_centered)

    def most_long(self, node: Node) -> tuple[int, int]:
        return _count(node), LONGEST

    def step(self, given: Given) -> Array:
        return jnp.float32(_step(_count(given.node), given.bits))

    def reach(self, given: Given) -> float:
        return 2.0 ** _bits(given.bits)

    def constants(self, given: Given) -> dict[str, Array]:
        return super().constants(given) | _epsilon(given)

    def accumulate(self, taken: Taken) -> Int32[Array, "..."]:
        """Returns ``c / sqrt(sum c**2 + epsilon)`` along the axis, in steps of 2**-15 or 2**-24.

        ``c`` is ``n * x - sum x`` of a layer norm and ``x`` of an RMS norm.
        """
        details, codes = taken.node.known_as(Normalized), taken.codes[0]
        axis, x = details.axis, codes.astype(jnp.int32)
        if taken.bits <= 8:
            x = x - taken.zeros[0]
        if details.is_centered:
            x = x.shape[axis] * x - jnp.sum(x, axis=axis, keepdims=True, dtype=jnp.int32)
        return (_normalized if taken.bits <= 8 else _normalized_long)(x, taken.c, axis)

    def rebuild(
        self, node: Node, values: Sequence[Array], scales: Sequence[float], known: Constants, bits: int
    ) -> tuple[Array, float]:
        details, x = node.known_as(Normalized), values[0]
        if isinstance(known.raw(details.epsilon), Dropped):
            raise ValueError(
                f"{node.path} ({node.source}): its epsilon is a parameter, and packed models hold no floats"
            )
        if details.is_centered:
            x = x - jnp.mean(x, details.axis, keepdims=True)
        spread = jnp.mean(jnp.square(x), details.axis, keepdims=True)
        epsilon = known.small(details.epsilon).astype(jnp.float32).reshape((1,) * x.ndim)
        return x * lax.rsqrt(spread + epsilon), _step(_count(node), bits)


def _count(node: Node) -> int:
    return node.ins[0].shape[node.known_as(Normalized).axis]


def _bits(bits: int) -> int:
    """After the point, of input codes of so many bits."""
    return 15 if bits <= 8 else 24


def _step(count: int, bits: int) -> float:
    return math.sqrt(count) * 2.0 ** -_bits(bits)


def _epsilon(given: Given) -> dict[str, Array]:
    """The epsilon in steps of the squares that are summed: 24 bits, and a shift."""
    details = given.node.known_as(Normalized)
    factor = jnp.float32(float(_count(given.node)) ** (3 if details.is_centered else 1))
    inverse = 1.0 / given.grids[0][0]
    eps = given.known.small(details.epsilon).astype(jnp.float32).reshape(())
    value = rounded_product(rounded_product(rounded_product(eps, factor), inverse), inverse)
    bits = lax.bitcast_convert_type(value, jnp.int32)
    is_normal = value >= 2.0**-126
    mantissa = jnp.where(is_normal, (bits & 0x7FFFFF) | 0x800000, 0)
    return {"epsilon": mantissa, "epsilon_shift": jnp.where(is_normal, exponent(value) - 23, -100)}


def _normalized(x: Array, c: Mapping[str, Any], axis: int) -> Int32[Array, "..."]:
    """Of 8-bit codes. Every row is shifted so that its squares, or the epsilon where that is larger, fill 30 bits."""
    most = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    width = (29 - math.ceil(math.log2(max(x.shape[axis], 2)))) // 2  # so many squares sum to less than 2**29
    # most * 2**up has at most `width` bits, and the epsilon, of 24 bits, at most 29
    up = jnp.minimum(lax.clz(jnp.maximum(most, 1)) - (32 - width), (5 - c["epsilon_shift"]) >> 1)
    t = jnp.where(up >= 0, x << jnp.clip(up, 0, 31), _rounded_half(x, jnp.clip(-up, 1, 31)))
    power = jnp.sum(t * t, axis=axis, keepdims=True, dtype=jnp.int32)
    shift = 2 * up + c["epsilon_shift"]  # of the epsilon's 24 bits to the scale of the squares
    power = jnp.maximum(power + _cut(c["epsilon"], shift), 1)
    half = (lax.clz(power) - 2) >> 1  # power * 4**half lies in [2**28, 2**30)
    root = square_root(power << (2 * half))
    t = t << (half + 15)
    bias = jnp.where(t < 0, -(root >> 1), root >> 1)
    return lax.div(t + bias, jnp.broadcast_to(root, t.shape))


def _normalized_long(x: Array, c: Mapping[str, Any], axis: int) -> Int32[Array, "..."]:
    """Of 16-bit codes. The squares of 15-bit values are added in two numbers, ``2**15 * high + low``.

    The root has 29 bits, and every row divides once: by its reciprocal.
    """
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
    root = square_root(power)
    rest = power - root * root
    fine = (root << 14) + lax.div(rest << 13, jnp.maximum(root, 1))
    inverse, _ = divided(jnp.full_like(fine, 2**28), jnp.maximum(fine, 2**28), 15, 2)
    words = wide_product(_scaled(x, up + 15), jnp.broadcast_to(inverse, x.shape))
    shift = 59 - 24 + (r >> 1)
    return floor_shift(words, shift) + bit(words, shift - 1)


def _scaled(x: Array, up: Array) -> Array:
    """``x * 2**up``, rounded half up."""
    down = jnp.clip(-up, 1, 31)
    return jnp.where(up >= 0, x << jnp.clip(up, 0, 31), _rounded_half(x, down))


def _rounded_half(x: Array, k: Array) -> Array:
    return (x + (jnp.int32(1) << (k - 1))) >> k


def _cut(x: Array, up: Array) -> Array:
    """``floor(x * 2**up)``."""
    return jnp.where(up >= 0, x << jnp.clip(up, 0, 31), x >> jnp.clip(-up, 0, 31))


KIND = Norm()
