"""LSQ+: a learned step and a learned offset, both started by least squares.

Reference: Bhalgat, Lee, Nagel, Blankevoort, Kwak, LSQ+: Improving low-bit quantization through learnable offsets and
better initialization, CVPR Workshops 2020, https://arxiv.org/abs/2004.09576. ``s``: step, ``beta``: offset (the value of
the lowest level), ``g``: gradient scale.

Differs from the paper: the offset that is used is ``beta`` rounded to a whole number of steps, straight through, and
the range is kept around zero. So zero is exact, the grid is the integer one that is served, and the gradients are
Eqs. (4) and (5). Weights are symmetric unless the text says ``/affine``; their start is least squares too.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.core.extremes import at_least, at_most
from lowbit.core.gradients import scale_gradient, straight_through
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.ranges import MSE
from lowbit.core.scales import check_positive, stored_scale
from lowbit.core.spec import Operand, Tensor
from lowbit.core.statistics import Statistic
from lowbit.formats.factory import quantizers


@dataclasses.dataclass(frozen=True)
class LSQPlus(Quantizer):
    """A step and, where affine, an offset that are trained parameters."""

    def __post_init__(self):
        check_positive(self.spec, "LSQ+")
        if not self.spec.format.is_integer or self.spec.format.high < 1:
            raise ValueError(f"LSQ+ needs an integer format with a positive level, got {self.spec.format.name}")
        if self.spec.dynamic or self.spec.scale.spec is not None:
            raise ValueError(f"LSQ+ learns a stored step of one float, got {self.spec.text}")

    def needs(self, operand: Operand) -> tuple[Statistic, ...]:
        if not isinstance(self.spec.granularity, Tensor):
            raise ValueError(f"LSQ+ inputs are per tensor, got {self.spec.text}")
        return MSE(ends=0).needs(operand, self.spec)

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        if "values" in stats:
            step, zero = MSE(ends=0).of_values(stats["values"], operand, self.spec)  # section 3.2
        else:
            step, zero = MSE(ends=0).of_stats(stats, operand, self.spec)
        if zero is None:
            return {"learn": {"step": step}, "fixed": {}}
        offset = at_least((self.spec.format.low - zero) * step, -float(np.finfo(np.float32).max))
        return {"learn": {"step": step, "offset": offset}, "fixed": {}}

    def served_by_spec(self) -> bool:
        return True

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        low, high = self.spec.format.low, self.spec.format.high
        axes = slice(0 if operand.is_weight else 1, None)
        count = float(np.prod([min(n, b) for n, b in zip(x.shape[axes], blocks[axes], strict=True)], initial=1.0))
        factor = 1.0 / math.sqrt(count * (high if self.spec.symmetric else high - low))  # g
        scale = stored_scale(scale_gradient(jnp.abs(qstate["learn"]["step"]), factor), self.spec)
        assert not isinstance(scale, QTensor)
        zero = None
        if "offset" in qstate["learn"]:
            exact = low - scale_gradient(qstate["learn"]["offset"], factor) * (1.0 / scale)
            zero = straight_through(exact, at_most(at_least(jnp.round(exact), low), high))
        return quantize_with(x, self.spec, scale, zero, blocks)


def lsq_plus(text: str) -> Quantizers:
    """Returns LSQ+ quantizers for a rule text.

    Args:
        text: such as ``"w4,a4"``; integer formats.

    Raises:
        ValueError: for other formats, dynamic inputs or quantized scales.

    Example:
        >>> lsq_plus("w4,a4").input.text
        "lsqplus('int4/tensor/affine')"
    """
    return quantizers(text, "lsq_plus", both=LSQPlus)
