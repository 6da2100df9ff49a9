"""TensorFlow's fake quantization: a trained minimum and maximum, nudged so that zero is a level.

Reference: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
CVPR 2018, https://arxiv.org/abs/1712.05877, section 3; the gradients are those of TensorFlow's
``fake_quant_with_min_max_vars``: to ``x`` one on the nudged range, ends included, to ``min`` where ``x`` is below it, to
``max`` where it is above.

Differs from TensorFlow: a range without zero is widened to it, where TensorFlow shifts the range as a whole (``[2, 6]`` is
``[0, 6]`` here and ``[0, 4]`` there), and the trained bound keeps the gradient of what lies beyond the widened one. Any
granularity and integer format; symmetric specs train ``max`` alone, with ``min = -max``
(unsigned: 0) and no nudge.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lowbit.core import blocks as block_ops
from lowbit.core.extremes import at_least, at_most, larger, largest, smallest
from lowbit.core.gradients import straight_through
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.ranges import scale_zero
from lowbit.core.scales import check_positive, stored_scale
from lowbit.core.spec import Operand
from lowbit.core.statistics import MinMax, Statistic
from lowbit.formats.factory import quantizers

_LARGEST = 2.0**120


@dataclasses.dataclass(frozen=True)
class FakeQuant(Quantizer):
    """Round to nearest on a grid between a trained minimum and maximum."""

    def __post_init__(self):
        check_positive(self.spec, "fake_quant")
        if not self.spec.format.is_integer or self.spec.format.high < 1 or self.spec.format.bits > 8:
            raise ValueError(f"fake_quant needs an integer format of 2 to 8 bits, got {self.spec.format.name}")
        if self.spec.dynamic or self.spec.scale.spec is not None:
            raise ValueError(f"fake_quant trains a stored range, got {self.spec.text}")

    def needs(self, operand: Operand) -> tuple[Statistic, ...]:
        return (MinMax(self.spec.granularity, operand.contract),)

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        if "values" in stats:
            values = stats["values"].astype(jnp.float32)
            blocks = self.spec.granularity.blocks(operand)
            low, high = (block_ops.reduce_blocks(values, blocks, f) for f in (smallest, largest))
        else:
            low, high = stats["minmax"]
        low, high = at_least(at_most(low, 0.0), -_LARGEST), at_most(at_least(high, 0.0), _LARGEST)
        if self.spec.symmetric:
            reach = larger(-low, high) if self.spec.format.low < 0 else high
            return {"learn": {"max": jnp.where(reach == 0, 1.0, reach)}, "fixed": {}}
        empty = (low == 0) & (high == 0)
        return {"learn": {"min": jnp.where(empty, -1.0, low), "max": jnp.where(empty, 1.0, high)}, "fixed": {}}

    def served_by_spec(self) -> bool:
        return True

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        high = qstate["learn"]["max"]
        low = qstate["learn"]["min"] if not self.spec.symmetric else (-high if self.spec.format.low < 0 else 0.0 * high)
        scale, zero = scale_zero(lax.stop_gradient(low), lax.stop_gradient(high), self.spec)
        scale = stored_scale(scale, self.spec)
        assert not isinstance(scale, QTensor)
        inverse = 1.0 / scale
        below = block_ops.spread(low * inverse, x.shape, blocks)
        above = block_ops.spread(high * inverse, x.shape, blocks)

        def nearest(scaled: Array, bottom: Array | float, top: Array | float) -> Array:
            # The nudged range in levels is [bottom, top]; the slack is the rounding of x * (1 / scale).
            edge = np.float32(2.0**-20)
            under = scaled < bottom - edge * jnp.abs(jnp.asarray(bottom, scaled.dtype))
            over = scaled > top + edge * jnp.abs(jnp.asarray(top, scaled.dtype))
            proxy = jnp.where(under, below, jnp.where(over, above, scaled))
            return straight_through(proxy, self.spec.format.nearest(scaled, bottom, top))

        return quantize_with(x, self.spec, scale, zero, blocks, nearest=nearest)


def fake_quant(text: str) -> Quantizers:
    """Returns TensorFlow-style quantizers with a trained range.

    Args:
        text: such as ``"w8,a8"``; integer formats of 2 to 8 bits.

    Raises:
        ValueError: for other formats, dynamic inputs or quantized scales.

    Example:
        >>> fake_quant("w8,a8").input.text
        "fakequant('int8/tensor/affine')"
    """
    return quantizers(text, "fake_quant", both=FakeQuant)
