"""Element-wise gradient scaling (EWGS): values far from their level get a larger or smaller gradient.

Reference: Lee, Kim, Ham, Network Quantization with Element-wise Gradient Scaling, CVPR 2021,
https://arxiv.org/abs/2104.00903. ``delta``: strength, ``x_n``: the value over [0, 1], ``x_q``: its level over [0, 1].

Differs from the paper: one learned step (around zero, or around a fixed integer zero point) in place of a learned lower
and upper end, with the gradient of LSQ's equations, values scaled as in Eq. (7); a value on an end counts as clipped.
``delta`` is a constant, where the paper's final form follows the Hessian's trace.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.core.gradients import element_wise
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.ranges import MSE
from lowbit.core.scales import check_positive, stored_scale
from lowbit.core.spec import Operand, Tensor
from lowbit.core.statistics import Statistic
from lowbit.formats.factory import quantizers


@dataclasses.dataclass(frozen=True)
class EWGS(Quantizer):
    """A learned step with element-wise scaled gradients.

    Attributes:
        delta: strength in the paper's unit, values over [0, 1]; 0 is the straight-through gradient.
    """

    delta: float = 0.001

    def __post_init__(self):
        check_positive(self.spec, "EWGS")
        if not self.spec.format.is_integer or self.spec.dynamic or self.spec.scale.spec is not None:
            raise ValueError(f"EWGS needs an integer format and a stored step of one float, got {self.spec.text}")
        if not 0.0 <= self.delta <= 10.0:
            raise ValueError(f"delta must be in [0, 10], got {self.delta}")

    def needs(self, operand: Operand) -> tuple[Statistic, ...]:
        if not isinstance(self.spec.granularity, Tensor):
            raise ValueError(f"EWGS inputs are per tensor, got {self.spec.text}")
        return MSE(ends=0).needs(operand, self.spec)

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        if "values" in stats:
            step, zero = MSE(ends=0).of_values(stats["values"], operand, self.spec)
        else:
            step, zero = MSE(ends=0).of_stats(stats, operand, self.spec)
        return {"learn": {"step": step}, "fixed": {} if zero is None else {"zero": zero}}

    def served_by_spec(self) -> bool:
        return True

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        steps = self.spec.format.high - self.spec.format.low
        nearest = element_wise(self.spec.format.nearest, self.delta / steps)  # Eq. (7) over levels
        scale = stored_scale(jnp.abs(qstate["learn"]["step"]), self.spec)
        return quantize_with(x, self.spec, scale, qstate["fixed"].get("zero"), blocks, nearest=nearest)


def ewgs(text: str, *, delta: float = 0.001) -> Quantizers:
    """Returns EWGS quantizers for a rule text.

    Args:
        text: such as ``"w2,a2"``; integer formats.
        delta: strength, in [0, 10].

    Raises:
        ValueError: for other formats, dynamic inputs, quantized scales or another ``delta``.

    Example:
        >>> ewgs("w2,a2").weight.text
        "ewgs('int2/channel/sym', delta=0.001)"
    """
    return quantizers(text, "ewgs", both=lambda spec: EWGS(spec, delta))
