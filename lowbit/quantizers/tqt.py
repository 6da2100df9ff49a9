"""Trained quantization thresholds (TQT): power-of-two scales, the threshold's logarithm is learned.

Reference: Jain, Gural, Wu, Dick, Trained Quantization Thresholds for Accurate and Efficient Fixed-Point Inference of
Deep Neural Networks, MLSys 2020, https://arxiv.org/abs/1903.08066. ``log2 t``: the threshold, ``s``: the scale,
``p``: the largest level.

Differs from the paper: thresholds start at least squares (the paper: 3 standard deviations for weights,
Kullback-Leibler for inputs).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lowbit.core.extremes import at_least, at_most
from lowbit.core.gradients import straight_through
from lowbit.core.powers import power_of_two
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.ranges import MSE
from lowbit.core.rounding import nearest_even
from lowbit.core.scales import check_positive, stored_scale
from lowbit.core.spec import Operand, Tensor
from lowbit.core.statistics import Statistic
from lowbit.formats.factory import quantizers


@dataclasses.dataclass(frozen=True)
class TQT(Quantizer):
    """``s = 2**ceil(log2 t) / 2**(b-1)`` (unsigned: ``2**b``), symmetric, per tensor or finer."""

    def __post_init__(self):
        check_positive(self.spec, "TQT")
        if not self.spec.format.is_integer or self.spec.format.high < 1:
            raise ValueError(f"TQT needs an integer format with a positive level, got {self.spec.format.name}")
        if not self.spec.symmetric or self.spec.dynamic or self.spec.scale.spec is not None:
            raise ValueError(f"TQT is symmetric with a stored power of two, got {self.spec.text}; write /sym")

    @property
    def _shift(self) -> int:
        """log2 of the number of steps to the threshold."""
        return math.ceil(math.log2(self.spec.format.high + 1.0))

    def needs(self, operand: Operand) -> tuple[Statistic, ...]:
        if not isinstance(self.spec.granularity, Tensor):
            raise ValueError(f"TQT inputs are per tensor, got {self.spec.text}")
        return MSE(ends=0).needs(operand, self.spec)

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        if "values" in stats:
            scale, _ = MSE(ends=0).of_values(stats["values"], operand, self.spec)
        else:
            scale, _ = MSE(ends=0).of_stats(stats, operand, self.spec)
        return {"learn": {"log2_threshold": jnp.log2(scale) + np.float32(self._shift)}, "fixed": {}}

    def served_by_spec(self) -> bool:
        return True

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        log_t = qstate["learn"]["log2_threshold"]
        fixed = lax.stop_gradient(log_t)
        whole = jnp.ceil(at_most(at_least(fixed, -200.0), 200.0)).astype(jnp.int32)
        power = jnp.where(jnp.isnan(fixed), fixed, power_of_two(whole - self._shift))  # Eq. (4)
        scale = straight_through(log_t * (power * np.float32(math.log(2.0))), power)  # ds/dlog2t = s ln 2, Eq. (7)
        power = stored_scale(scale, self.spec)
        return quantize_with(x, self.spec, power, None, blocks, nearest=self._nearest)  # Eqs. (6) to (8)

    def _nearest(self, x: Array, low: Array | float, high: Array | float) -> Array:
        """The nearest level; inside is what *rounds* to a level, up to half a step beyond the outer ones: Eqs. (7), (8)."""
        whole = nearest_even(lax.stop_gradient(x))
        bound = jnp.where(whole < low, jnp.float32(low), jnp.float32(high))
        value = self.spec.format.nearest(lax.stop_gradient(x), low, high)
        return straight_through(jnp.where((whole < low) | (whole > high), bound, x), value)


def tqt(text: str) -> Quantizers:
    """Returns TQT quantizers for a rule text.

    Args:
        text: such as ``"w8,a8/sym"``; integer formats, symmetric.

    Raises:
        ValueError: for other formats, affine or dynamic specs.

    Example:
        >>> tqt("w8,auint8/sym").input.text
        "tqt('uint8/tensor/sym')"
    """
    return quantizers(text, "tqt", both=TQT)
