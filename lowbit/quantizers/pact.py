"""PACT: a learned clip for inputs that are not negative.

Reference: Choi, Wang, Venkataramani, Chuang, Srinivasan, Gopalakrishnan, PACT: Parameterized Clipping Activation for
Quantized Neural Networks, 2018, https://arxiv.org/abs/1805.06085. ``alpha``: the clip, ``k``: bits.

Differs from the paper: ``alpha`` starts at the largest value seen in calibration (the paper: a constant, 10), and a
symmetric signed grid clips at its lowest level too (``-8 / 7 alpha`` with 4 bits), with that share of the gradient. A
value on the lower end gets no gradient. The paper's weights are DoReFa's: ``dorefa("w4")``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lowbit.core import blocks as block_ops
from lowbit.core.extremes import at_least, at_most, larger
from lowbit.core.gradients import straight_through
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.scales import check_positive, stored_scale
from lowbit.core.spec import Operand
from lowbit.core.statistics import MinMax, Statistic
from lowbit.formats.factory import quantizers


@dataclasses.dataclass(frozen=True)
class PACT(Quantizer):
    """``round(clip(x, 0, alpha) (2**k - 1) / alpha) alpha / (2**k - 1)`` with a trained ``alpha``."""

    def __post_init__(self):
        check_positive(self.spec, "PACT")
        if not self.spec.format.is_integer or self.spec.format.high < 1:
            raise ValueError(f"PACT needs an integer format with a positive level, got {self.spec.format.name}")
        if self.spec.dynamic or self.spec.scale.spec is not None:
            raise ValueError(f"PACT learns a stored clip of one float, got {self.spec.text}")

    @property
    def _steps(self) -> float:
        """Steps from zero to the clip."""
        return self.spec.format.high if self.spec.symmetric else self.spec.format.high - self.spec.format.low

    def needs(self, operand: Operand) -> tuple[Statistic, ...]:
        return (MinMax(self.spec.granularity, operand.contract),)

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        if "minmax" not in stats:
            raise ValueError("PACT is for inputs; the paper's weights are dorefa's")
        low, high = stats["minmax"]
        is_two_sided = self.spec.symmetric and self.spec.format.low < 0
        reach = larger(-low, high) if is_two_sided else at_least(high, 0.0)
        return {"learn": {"clip": jnp.where(reach == 0, 1.0, at_most(reach, 2.0**120))}, "fixed": {}}

    def served_by_spec(self) -> bool:
        return True

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        alpha = jnp.abs(qstate["learn"]["clip"])
        scale = stored_scale(lax.stop_gradient(alpha) * np.float32(1.0 / self._steps), self.spec)
        assert not isinstance(scale, QTensor)
        zero = None if self.spec.symmetric else jnp.full(scale.shape, self.spec.format.low, jnp.float32)
        in_steps = block_ops.spread(alpha * (1.0 / scale), x.shape, blocks)

        def nearest(scaled: Array, low: Array | float, high: Array | float) -> Array:
            # Eq. (1): the gradient of the clip alone. alpha gets one where x >= alpha, and nothing inside.
            share = self.spec.format.low / self._steps if self.spec.symmetric else 0.0
            bottom = in_steps * np.float32(share)
            proxy = jnp.where(scaled >= in_steps, in_steps, jnp.where(scaled <= bottom, bottom, scaled))
            return straight_through(proxy, self.spec.format.nearest(scaled, low, high))

        return quantize_with(x, self.spec, scale, zero, blocks, nearest=nearest)


def pact(text: str) -> Quantizers:
    """Returns PACT input quantizers for a rule text.

    Args:
        text: such as ``"a4"``; integer formats.

    Raises:
        ValueError: for other formats, or a ``w`` part: the paper's weights are DoReFa's.

    Example:
        >>> pact("a4").input.text
        "pact('int4/tensor/affine')"
    """
    return quantizers(text, "pact", input=PACT)
