"""Stochastic rounding in training, nearest in serving.

Reference: Gupta, Agrawal, Gopalakrishnan, Narayanan, Deep Learning with Limited Numerical Precision, ICML 2015,
https://arxiv.org/abs/1502.02551, section 3; Krishnamoorthi, 2018, arXiv 1806.08342, section 2.3 (whose text adds the
noise before dividing by the step; it belongs after).

The rounded value has the original as its mean and an error of ``step**2 / 6`` on average, twice that of nearest.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from lowbit.core.extremes import at_least, at_most
from lowbit.core.gradients import inclusive
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.ranges import Full, RangeRule, check_range
from lowbit.core.rounding import nearest_even
from lowbit.core.scales import stored_scale
from lowbit.core.spec import Operand
from lowbit.core.statistics import Statistic
from lowbit.formats.factory import quantizers


@dataclasses.dataclass(frozen=True)
class Stochastic(Quantizer):
    """``round(x / s + width (u - 1/2))`` with ``u`` uniform in [0, 1).

    Attributes:
        range: the range rule.
        width: 1 is stochastic rounding: up with probability ``x / s - floor(x / s)``; 0 is nearest.
    """

    range: RangeRule = Full()
    width: float = 1.0

    def __post_init__(self):
        if not self.spec.format.has_rounding or self.spec.dynamic:
            raise ValueError(
                f"stochastic rounding needs an integer or float format and a stored scale, got {self.spec.text}"
            )
        if not 0.0 <= self.width <= 1.0:
            raise ValueError(f"width must be in [0, 1], got {self.width}")
        check_range(self.range, self.spec)

    def needs(self, operand: Operand) -> tuple[Statistic, ...]:
        return () if operand.is_weight else self.range.needs(operand, self.spec)

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        if "values" in stats:
            scale, zero = self.range.of_values(stats["values"], operand, self.spec)
        else:
            scale, zero = self.range.of_stats(stats, operand, self.spec)
        fixed = {"scale": stored_scale(scale, self.spec, operand)}
        return {"learn": {}, "fixed": fixed if zero is None else {**fixed, "zero": zero}}

    def _on_grid(self, qstate: QState, x: Array, operand: Operand, nearest) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        fixed = qstate["fixed"]
        return quantize_with(x, self.spec, fixed["scale"], fixed.get("zero"), blocks, nearest=inclusive(nearest))

    def served_by_spec(self) -> bool:
        return True

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        return self._on_grid(qstate, x, operand, self.spec.format.nearest)

    def train(
        self, qstate: QState, x: Float[Array, "..."], operand: Operand, *, key: Array | None, step: Array | None
    ) -> QTensor:
        """Returns ``x`` rounded at random.

        Raises:
            ValueError: without a key.
        """
        if key is None:
            raise ValueError("stochastic rounding needs key=, a typed key that changes every step")

        def shaken(scaled: Array) -> Array:
            noise = jax.random.uniform(key, scaled.shape, scaled.dtype) - 0.5
            return nearest_even(scaled + noise * np.float32(self.width))

        def nearest(scaled: Array, low: Array | float, high: Array | float) -> Array:
            rounded: Any = self.spec.format.nearest  # a format that `has_rounding` takes round=
            level = rounded(scaled, low, high, round=shaken)
            return at_most(
                at_least(level, low), high
            )  # noise may round past the last level where the bound is not a level

        return self._on_grid(qstate, x, operand, nearest)

    def limit(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> tuple[Quantizer, QState, int]:
        return dataclasses.replace(self, width=0.0), qstate, 0


def stochastic(text: str, *, range: RangeRule = Full(), width: float = 1.0) -> Quantizers:
    """Returns quantizers that round at random in training and to nearest in serving.

    Args:
        text: such as ``"w4/g32"``; integer and float formats.
        range: the range rule of both parts.
        width: of the noise, in steps, in [0, 1].

    Raises:
        ValueError: for codebooks, dynamic inputs or another width.

    Example:
        >>> stochastic("w4").weight.text
        "stochastic('int4/channel/sym', range=Full(), width=1.0)"
    """
    return quantizers(text, "stochastic", both=lambda spec: Stochastic(spec, range, width))
