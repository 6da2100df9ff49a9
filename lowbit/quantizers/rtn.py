"""Round to nearest: no training, one range rule. The baseline of every table.

Reference: Krishnamoorthi, Quantizing deep convolutional networks for efficient inference, 2018,
https://arxiv.org/abs/1806.08342, sections 2.1 to 3.1; the gradient is Eq. (15).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Float

from lowbit.core.gradients import inclusive
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.ranges import Full, MovingAverage, RangeRule, check_range, dynamic_range
from lowbit.core.scales import stored_scale
from lowbit.core.spec import Operand
from lowbit.core.statistics import Statistic
from lowbit.formats.factory import quantizers
from lowbit.formats.rounding import check_rounds, nearest_of


@dataclasses.dataclass(frozen=True)
class RTN(Quantizer):
    """Round to nearest on the grid of a range rule; straight-through gradient within the range, its ends included.

    Attributes:
        range: the range rule.
        rounding: ``"nearest_even"``, or ``"half_away"`` (integer and float formats).
    """

    range: RangeRule = Full()
    rounding: str = "nearest_even"

    def __post_init__(self):
        check_rounds(self.spec.format, self.rounding)
        check_range(self.range, self.spec)

    def needs(self, operand: Operand) -> tuple[Statistic, ...]:
        if operand.is_weight or self.spec.dynamic:
            return ()
        return self.range.needs(operand, self.spec)

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        if self.spec.dynamic:
            return {"learn": {}, "fixed": {}}
        if "values" in stats:
            scale, zero = self.range.of_values(stats["values"], operand, self.spec)
        else:
            scale, zero = self.range.of_stats(stats, operand, self.spec)
        fixed = {"scale": stored_scale(scale, self.spec, operand)}
        return {"learn": {}, "fixed": fixed if zero is None else {**fixed, "zero": zero}}

    def served_by_spec(self) -> bool:
        is_full = type(self.range) in (Full, MovingAverage)  # a subclass may find another range
        return self.rounding == "nearest_even" and (is_full or not self.spec.dynamic)

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        operand = dataclasses.replace(operand, shape=tuple(x.shape))
        if self.spec.dynamic:
            scale, zero = dynamic_range(self.range, x, operand, self.spec)
            scale = stored_scale(scale, self.spec, operand)
        else:
            scale, zero = qstate["fixed"]["scale"], qstate["fixed"].get("zero")
        blocks = self.spec.granularity.blocks(operand)
        nearest = inclusive(nearest_of(self.spec.format, self.rounding))
        return quantize_with(x, self.spec, scale, zero, blocks, nearest=nearest)


def rtn(text: str, *, range: RangeRule = Full(), rounding: str = "nearest_even") -> Quantizers:
    """Returns round-to-nearest quantizers for a rule text.

    Args:
        text: such as ``"w4/g32,a8"``; every format.
        range: the range rule of both parts; `lowbit.core.ranges.Full` (absmax, minimum and maximum) by default.
        rounding: of both parts: ``"nearest_even"`` or ``"half_away"``.

    Raises:
        ValueError: for a text, a rule or a rounding that do not go together.

    Example:
        >>> rtn("w4,a8").weight.spec.text
        'int4/channel/sym'
    """
    return quantizers(text, "rtn", both=lambda spec: RTN(spec, range, rounding))
