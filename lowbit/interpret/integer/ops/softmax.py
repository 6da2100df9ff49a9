"""Softmax: a table of exponentials, an integer sum, an integer quotient.

Of 16-bit codes an exponential is the product of two table entries, one per byte of the argument, cut to 20 bits and less.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32

from lowbit.core.rounding import nearest_even, rounded_product
from lowbit.interpret.integer.compute import divided
from lowbit.interpret.integer.kind import Given, Taken
from lowbit.interpret.integer.linear import Template
from lowbit.interpret.integer.nodes import Details, Node
from lowbit.interpret.integer.placer import Placer
from lowbit.interpret.integer.words import wide_product
from lowbit.program.read import Equation, Value

BITS = 14
"""The exponentials of 8-bit codes are integers up to 2**14; quotients have 16 bits."""

LONG_BITS = 24
"""The two factors of an exponential of 16-bit codes are integers up to 2**24."""

LONGEST = 2**13
"""Elements of a row of 16-bit codes: more do not fit the sum."""

_TOTAL_BITS, _PART_BITS = 27, 20


@dataclass(frozen=True, eq=False)
class Rows(Details):
    """What a softmax knows.

    Attributes:
        axis: along which it is.
        kept: a mask, where there is one: a constant, or computed of integers.
    """

    axis: int
    kept: Value | None

    @property
    def values(self) -> tuple[Value, ...]:
        return () if self.kept is None else (self.kept,)


class Softmax(Template):
    """A softmax, with or without a mask."""

    name = "softmax"

    def detailed(self, equation: Equation, placer: Placer) -> Details:
        template = placer.templates[equation]
        return Rows(template.axis, template.kept)

    def most_long(self, node: Node) -> tuple[int, int]:
        return node.ins[0].shape[node.known_as(Rows).axis], LONGEST

    def step(self, given: Given) -> Array:
        return jnp.float32(2.0**-16)

    def reach(self, given: Given) -> float:
        return 2.0**16

    def constants(self, given: Given) -> dict[str, Array]:
        scale = given.grids[0][0]
        if given.bits <= 8:
            tables = {"table": _exponentials(scale, 2 ** given.specs[0].format.bits, 1, BITS)}
        else:
            tables = {
                "coarse": _exponentials(scale, 256, 256, LONG_BITS),
                "fine": _exponentials(scale, 256, 1, LONG_BITS),
            }
        return super().constants(given) | tables

    def held(self, node: Node) -> list[Value]:
        return [*node.equations[0].ins, *node.details.values]

    def accumulate(self, taken: Taken) -> Int32[Array, "..."]:
        """Returns softmax in steps of 2**-16.

        Where ``kept`` is false the result is 0; where it is false along a whole row, all of the row is alike, as in float.
        """
        details, codes = taken.node.known_as(Rows), taken.codes[0]
        kept, axis = details.kept, details.axis
        if kept is not None:
            kept = taken.codes[1] if kept.is_data else taken.known.value(kept)
        wide = codes.astype(jnp.int32)
        if kept is not None:
            wide = jnp.where(kept, wide, jnp.iinfo(codes.dtype).min)
        below = jnp.max(wide, axis=axis, keepdims=True) - wide
        if taken.bits <= 8:
            parts = _kept(jnp.take(taken.c["table"], below, axis=0, mode="clip"), kept, axis)
            total = jnp.sum(parts, axis=axis, keepdims=True, dtype=jnp.int32)
            return lax.div((parts << 16) + (total >> 1), jnp.broadcast_to(total, parts.shape))
        parts = _kept(_long_parts(below, taken.c, codes.shape[axis]), kept, axis)
        total = jnp.broadcast_to(jnp.sum(parts, axis=axis, keepdims=True, dtype=jnp.int32), parts.shape)
        quotient, rest = divided(parts, total, 4, 4)
        return quotient + (2 * rest >= total).astype(jnp.int32)


def _exponentials(scale: Array, count: int, every: int, bits: int) -> Array:
    """``exp(-x)`` at every so many codes from 0 on, as integers up to ``2**bits``."""
    steps = jnp.arange(count, dtype=jnp.float32) * every
    powers = jnp.exp(-rounded_product(steps, scale))
    return nearest_even(powers * 2.0**bits).astype(jnp.int32)


def _kept(parts: Array, kept: Bool[Array, "..."] | None, axis: int) -> Array:
    if kept is None:
        return parts
    return jnp.where(kept | ~jnp.any(kept, axis=axis, keepdims=True), parts, 0)


def _long_parts(below: Array, c: Mapping[str, Any], length: int) -> Array:
    coarse = jnp.take(c["coarse"], below >> 8, axis=0, mode="clip")
    fine = jnp.take(c["fine"], below & 255, axis=0, mode="clip")
    product, _ = wide_product(coarse, fine << 6)  # 2**22 is 1
    width = min(_PART_BITS, _TOTAL_BITS - math.ceil(math.log2(length)))
    return (product + (1 << (21 - width))) >> (22 - width)


KIND = Softmax()
