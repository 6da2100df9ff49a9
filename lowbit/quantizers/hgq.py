"""Widths learned by gradients (HGQ): the fractional bits of fixed-point values, per tensor, channel or group.

Reference: Sun, Que, Aarrestad, Loncar, Ngadiuba, Luk, Spiropulu, Gradient-based Automatic Mixed Precision Quantization for
Neural Networks On-Chip, 2024, https://arxiv.org/abs/2405.00645, Eqs. (5) to (9) and Algorithm 1. ``f``: fractional bits,
``i``: integer bits, ``delta = x - x_q``: the error, whose derivative by ``f`` is ``-ln 2 delta``.

Differs from the paper: the integer bits are those of the weights, or of the inputs' range, when training begins, and what grows
beyond saturates (the paper follows the extremes of every batch); a code has 8 bits at most, that of an input 2 at least. The cost
is the user's: `lowbit.learn.price` makes it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.core import blocks as block_ops
from lowbit.core.extremes import at_least, at_most, larger, largest_magnitude
from lowbit.core.gradients import straight_through, unmasked
from lowbit.core.powers import ceil_power_of_two, exponent, power_of_two
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.rounding import nearest_even
from lowbit.core.scales import smallest_scale
from lowbit.core.spec import Operand
from lowbit.core.statistics import MinMax, Statistic
from lowbit.formats.factory import learned, quantizers
from lowbit.formats.widths import LEAST, MOST, LearnedWidths, check_learned, ends, fixed


@dataclasses.dataclass(frozen=True)
class HGQ(LearnedWidths):
    """``x_q = round(x 2^f) 2^-f`` between ``-2^i`` and ``2^i - 2^-f``; ``i + f + 1`` bits, unsigned ``i + f`` from 0 on.

    Attributes:
        least: bits of a code, at least: 1 of weights, 2 of inputs.
    """

    least: int = 1

    def __post_init__(self):
        check_learned(self.spec, "HGQ", self.start, ("float32", "e8m0"))
        if self.least not in (1, LEAST):
            raise ValueError(f"least must be 1 or {LEAST} bits, got {self.least}")

    def needs(self, operand: Operand) -> tuple[Statistic, ...]:
        return () if operand.is_weight else (MinMax(self.spec.granularity, operand.contract),)

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        if "values" in stats:
            x = stats["values"].astype(jnp.float32)
            reach = block_ops.reduce_blocks(x, self.spec.granularity.blocks(operand), largest_magnitude)
        else:
            low, high = stats["minmax"]
            reach = larger(-low, high) if self._sign else high
        least = smallest_scale(self.spec) * 2.0**MOST
        top = ceil_power_of_two(at_most(at_least(reach, least), 2.0**126))
        whole = jnp.where(jnp.isnan(reach), reach, exponent(top).astype(jnp.float32))
        return {"learn": {"fraction": np.float32(self.start - self._sign) - whole}, "fixed": {"whole": whole}}

    def hardened(self, qstate: QState, operand: Operand) -> tuple[Quantizer, QState]:
        fraction = nearest_even(self._fraction(qstate))
        bits = fraction + qstate["fixed"]["whole"] + float(self._sign)
        return fixed(self.spec, power_of_two(-fraction.astype(jnp.int32)), bits)

    def widths(self, qstate: QState) -> Float[Array, "..."]:
        return self._fraction(qstate) + qstate["fixed"]["whole"] + float(self._sign)

    def _fraction(self, qstate: QState) -> Float[Array, "..."]:
        """``f`` between the least and 8 bits."""
        other = qstate["fixed"]["whole"] + float(self._sign)
        return at_most(at_least(qstate["learn"]["fraction"], np.float32(self.least) - other), np.float32(MOST) - other)

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        f, whole = self._fraction(qstate), qstate["fixed"]["whole"]
        rounded = nearest_even(f)
        power = jnp.where(jnp.isnan(rounded), rounded, power_of_two(-rounded.astype(jnp.int32)))
        scale = straight_through(
            -f * (power * np.float32(np.log(2.0))), power
        )  # ds/df = -s ln 2, so dx_q/df = ln 2 delta
        low, high = (
            block_ops.spread(e, x.shape, blocks)
            for e in ends(rounded + whole + float(self._sign), is_signed=self._sign > 0)
        )

        def nearest(cut: Array, *_: Array | float) -> Array:  # a block's own ends are as narrow as the spec's
            return unmasked(self.spec.format.nearest)(cut, low, high)  # Algorithm 1: dx_q/dx = 1

        return quantize_with(x, self.spec, scale, None, blocks, nearest=nearest)


def hgq(text: str) -> Quantizers:
    """Returns quantizers with learned widths.

    Args:
        text: such as ``"w6/channel"`` or ``"w6,a6/sym"``: the bits that training begins with, and who shares a width and a scale.
            Inputs are signed, or, as ``auint6/sym``, never negative.

    Raises:
        ValueError: for other formats, or affine specs.

    Example:
        >>> hgq("w6/g32").weight.text
        "hgq('int8/g32/sym', start=6, least=1)"
    """
    return quantizers(
        text, "hgq",
        weight=lambda spec: HGQ(learned(spec, "hgq"), spec.format.bits),
        input=lambda spec: HGQ(learned(spec, "hgq", is_input=True), spec.format.bits, LEAST),
    )  # fmt: skip
