"""Widths learned by gradients (HGQ): the fractional bits of fixed-point weights, per tensor, channel or group.

Reference: Sun, Que, Aarrestad, Loncar, Ngadiuba, Luk, Spiropulu, Gradient-based Automatic Mixed Precision Quantization for
Neural Networks On-Chip, 2024, https://arxiv.org/abs/2405.00645, Eqs. (5) to (9) and Algorithm 1. ``f``: fractional bits,
``i``: integer bits, ``delta = x - x_q``: the error, whose derivative by ``f`` is ``-ln 2 delta``.

Differs from the paper: the integer bits are those of the weights when training begins, and what grows beyond saturates (the
paper follows the extremes of every batch); a code has 8 bits at most. The cost is the user's: `lowbit.learn.harden.widths` has the bits.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.core import blocks as block_ops
from lowbit.core.extremes import at_least, at_most, largest_magnitude
from lowbit.core.gradients import straight_through, unmasked
from lowbit.core.powers import ceil_power_of_two, exponent, power_of_two
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.rounding import nearest_even
from lowbit.core.scales import check_positive, smallest_scale
from lowbit.core.spec import Operand
from lowbit.formats.factory import learned, quantizers
from lowbit.formats.lookup import format_named

MOST = 8
"""Bits of a code, at most: what learned widths are stored in until they are hardened."""


@dataclasses.dataclass(frozen=True)
class HGQ(Quantizer):
    """``x_q = round(x 2^f) 2^-f`` between ``-2^i`` and ``2^i - 2^-f``; ``i + f + 1`` bits, 1 to 8.

    Attributes:
        start: bits that training begins with.
        is_fixed: whether widths are learned no more: the spec then has as many bits as the widest.
    """

    start: int = 6
    is_fixed: bool = False

    def __post_init__(self):
        check_positive(self.spec, "HGQ")
        if not 1 <= self.start <= MOST:
            raise ValueError(f"start must be 1 to {MOST} bits, got {self.start}")
        if not self.spec.format.is_integer or not self.spec.format.is_signed or not self.spec.symmetric:
            raise ValueError(f"HGQ needs signed integers without zero points, got {self.spec.text}")
        if self.spec.dynamic or self.spec.scale.spec is not None or self.spec.scale.name not in ("float32", "e8m0"):
            raise ValueError(f"HGQ's scales are stored powers of two, in float32 or e8m0; got {self.spec.text}")

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        x = stats["values"].astype(jnp.float32)
        reach = block_ops.reduce_blocks(x, self.spec.granularity.blocks(operand), largest_magnitude)
        least = smallest_scale(self.spec) * 2.0**MOST
        top = ceil_power_of_two(at_most(at_least(reach, least), 2.0**126))
        whole = jnp.where(jnp.isnan(reach), reach, exponent(top).astype(jnp.float32))
        fraction = np.float32(self.start - 1) - whole
        if self.is_fixed:
            return {"learn": {}, "fixed": {"whole": whole, "fraction": fraction}}
        return {"learn": {"fraction": fraction}, "fixed": {"whole": whole}}

    @property
    def is_hard(self) -> bool:
        return self.is_fixed

    @property
    def is_nearest(self) -> bool:
        return False  # a block of fewer bits than the spec's ends before the spec's grid does

    def hardened(self, qstate: QState, operand: Operand) -> tuple[Quantizer, QState]:
        widest = max(int(np.max(np.asarray(nearest_even(self.widths(qstate))))), 2)
        spec = dataclasses.replace(self.spec, format=format_named(f"int{widest}"))
        fixed = {"whole": qstate["fixed"]["whole"], "fraction": self._fraction(qstate)}
        return HGQ(spec, self.start, is_fixed=True), {"learn": {}, "fixed": fixed}

    def widths(self, qstate: QState) -> Float[Array, "..."]:
        return self._fraction(qstate) + qstate["fixed"]["whole"] + 1.0

    def _fraction(self, qstate: QState) -> Float[Array, "..."]:
        """``f`` between the widths of 1 and 8 bits."""
        whole = qstate["fixed"]["whole"]
        found = qstate["fixed" if self.is_fixed else "learn"]["fraction"]
        return at_most(at_least(found, -whole), np.float32(MOST - 1) - whole)

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        f, whole = self._fraction(qstate), qstate["fixed"]["whole"]
        rounded = nearest_even(f)
        power = jnp.where(jnp.isnan(rounded), rounded, power_of_two(-rounded.astype(jnp.int32)))
        scale = straight_through(
            -f * (power * np.float32(np.log(2.0))), power
        )  # ds/df = -s ln 2, so dx_q/df = ln 2 delta
        end = block_ops.spread(power_of_two((rounded + whole).astype(jnp.int32)), x.shape, blocks)

        def nearest(cut: Array, low: Array | float, high: Array | float) -> Array:
            del low, high  # of the spec; a block's own are as narrow
            return unmasked(self.spec.format.nearest)(cut, -end, end - 1.0)  # Algorithm 1: dx_q/dx = 1

        return quantize_with(x, self.spec, scale, None, blocks, nearest=nearest)


def hgq(text: str) -> Quantizers:
    """Returns the quantizer of weights with learned widths.

    Args:
        text: such as ``"w6/channel"``: the bits that training begins with, and who shares a width and a scale.

    Raises:
        ValueError: for inputs, other formats, or affine specs.

    Example:
        >>> hgq("w6/g32").weight.text
        "hgq('int8/g32/sym', start=6, is_fixed=False)"
    """
    return quantizers(text, "hgq", weight=lambda spec: HGQ(learned(spec, "hgq"), start=spec.format.bits))
