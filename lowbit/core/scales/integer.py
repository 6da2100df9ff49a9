"""Small integers per group times one float32 per channel: ``int5`` with a sign, ``uint4`` without one.

A level times its group's integer is an integer. Where every such product fits int8 (levels of ``int4`` and ``int5``: 8 x 15),
the sum over a whole contraction stays in int32 with one float per channel after it, groups or not: `Integers.merged`.
Wider ones (``int4`` and ``int6``) are scales like any others, and cost a float sum per group.

Prior art: integer sub-scales of llama.cpp's K-quants; Dai et al., VS-Quant, 2021, https://arxiv.org/abs/2102.04503, section 5;
Lin et al., QServe, 2024, https://arxiv.org/abs/2405.04532, section 4.1. Here they have a sign, which turns the grid to the
side of a group's largest value.
"""

import dataclasses
import re
from typing import Any, Literal

import jax.numpy as jnp

from lowbit.core import blocks as block_ops
from lowbit.core.blocks import Dim
from lowbit.core.granularity import Channel, Granularity
from lowbit.core.operand import Operand
from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Format, Spec
from lowbit.core.storage import Numbers

from .nested import Nested

WORDS = tuple(f"int{bits}" for bits in range(2, 9)) + tuple(f"uint{bits}" for bits in range(1, 9))


@dataclasses.dataclass(frozen=True)
class Integers(Nested):
    """One integer per group, from 1 (or minus 1) up in magnitude, and one float32 per channel.

    The integers of ``int5`` are -15 to 15: as many on either side, so that eight times the largest still fits int8.

    Attributes:
        product: the signed 8-bit format that levels times integers are in.
    """

    product: Format

    @property
    def name(self) -> str:
        return self.numbers.format.name.removesuffix("n")

    @property
    def signs(self) -> Literal["never", "either", "always"]:
        return "always" if self.numbers.format.is_signed else "never"

    def check(self, numbers: Format, granularity: Granularity) -> None:
        if granularity.kind != "group":
            raise ValueError(f"/{self.name} is an integer per group of a channel, got /{granularity.text}; use /gN")

    def blocks(self, shape: tuple[Dim, ...], operand: Operand | None) -> tuple[Dim, ...]:
        if operand is None:
            raise ValueError(f"/{self.name} has a float32 per channel, so that stored_scale needs the operand")
        return Channel().blocks(Operand(shape, contract=operand.contract, stack=operand.stack))

    def is_exact(self, numbers: Format) -> bool:
        """Returns whether every level times every integer is an integer of 8 bits."""
        return numbers.is_integer and max(-numbers.low, numbers.high) * self.numbers.format.high <= self.product.high

    def merged_spec(self, spec: Spec) -> Spec:
        return Spec(self.product, Channel()) if spec.symmetric and self.is_exact(spec.format) else spec

    def merged(self, q: QTensor) -> QTensor:
        spec = self.merged_spec(q.spec)
        if not isinstance(q.scale, QTensor) or spec is q.spec:
            return q
        has_levels = q.stage == "levels"
        levels = q.codes if has_levels else q.unpacked_codes().astype(jnp.int8)  # an int8 product of integers: no float
        factors = q.scale.levels() if has_levels else q.scale.encode().unpacked_codes().astype(jnp.int8)
        spread = block_ops.spread(factors, levels.shape, q.blocks)
        levels = block_ops.join(block_ops.split(levels, q.blocks) * spread, levels.shape, q.blocks)
        return QTensor(levels, q.scale.scale, None, spec, q.dtype, stage="levels" if has_levels else "codes")

    def factors(self, q: QTensor) -> tuple[Any, Any] | None:
        if not isinstance(q.scale, QTensor) or self.merged_spec(q.spec) is q.spec:
            return None
        return q.scale.unpacked_codes().astype(jnp.int8), q.scale.scale


def named(word: str, numbers: Numbers) -> Integers | None:
    """Returns ``int2`` to ``int8``, ``uint1`` to ``uint8``, or None."""
    match = re.fullmatch(r"(u?)int([1-8])", word)
    if not match or word not in WORDS:
        return None
    inner = numbers(word if match[1] else f"{word}n")
    return Integers(Spec(inner, Channel()), numbers("int8"))
