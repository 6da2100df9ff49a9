"""DoReFa: tanh-normalised weights on [-1, 1], inputs clipped to [0, 1]. Weights and inputs differ.

Reference: Zhou, Wu, Ni, Zhou, Wen, Zou, DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low
Bitwidth Gradients, 2016, https://arxiv.org/abs/1606.06160. ``k``: bits, ``r_i``: weights, ``r_o``: their levels.

Differs from the paper: the largest ``|tanh|`` is taken per granule of the rule text (the paper: ``/tensor``); gradients
are not quantized. As in the derivative of Eq. (9), the gradient of the weights goes through the largest ``|tanh|`` too;
quantize_k passes it on [0, 1], the ends included. A weight of 0 has, with one bit, the sign -1. The weights' tanh makes this the one quantizer here that is no projection: quantizing its own
result bends it again, so it cannot be followed by a solver.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lowbit.core import blocks as block_ops
from lowbit.core.extremes import at_least, largest_magnitude
from lowbit.core.gradients import inclusive
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.spec import Operand
from lowbit.core.weight_statistics import exact_mean, positive_scale
from lowbit.formats.factory import quantizers
from lowbit.formats.signs import MidRise, mid_rise_of


@dataclasses.dataclass(frozen=True)
class DoReFaWeight(Quantizer):
    """``2 quantize_k(tanh(r) / (2 max |tanh r|) + 1/2) - 1``; for one bit ``mean |r| sign(r)``."""

    def __post_init__(self):
        if not isinstance(self.spec.format, MidRise):
            raise ValueError(
                f"DoReFa weights have 2**k levels without zero, got {self.spec.format.name}; write w4 or wmid4"
            )
        if not self.spec.symmetric or self.spec.scale.name != "float32":
            raise ValueError(f"DoReFa weights are symmetric with a float32 scale, got {self.spec.text}")

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        if "values" not in stats:
            raise ValueError("these are DoReFa's weights; for inputs write an a part")
        return {"learn": {}, "fixed": {}}

    @property
    def is_projection(self) -> bool:
        return self.spec.format.bits == 1

    @property
    def needs_values(self) -> bool:
        return self.spec.format.bits == 1

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        wide = x.astype(jnp.float32)
        shape = block_ops.scale_shape(x.shape, blocks)
        if self.spec.format.bits == 1:
            # Eqs. (7), (8): the gradient passes as it came; none goes through the mean.
            scale = positive_scale(lax.stop_gradient(exact_mean(jnp.abs(wide), blocks)), self.spec)
            return quantize_with(x, self.spec, scale, None, blocks, nearest=_identity(self.spec.format.nearest))
        bent = jnp.tanh(wide)
        top = block_ops.reduce_blocks(bent, blocks, largest_magnitude)
        inverse = 1.0 / jnp.where(top == 0, 1.0, at_least(top, 2.0**-100))
        unit = block_ops.split(bent, blocks) * block_ops.spread(inverse, x.shape, blocks)
        unit = block_ops.join(unit, x.shape, blocks)  # in [-1, 1]
        scale = jnp.full(shape, np.float32(1.0 / self.spec.format.high))
        levels = quantize_with(
            unit, self.spec, scale, None, blocks, nearest=inclusive(self.spec.format.nearest)
        )  # Eq. (9)
        return dataclasses.replace(levels, dtype=str(x.dtype))


def _identity(nearest):
    return inclusive(nearest, slack=float("inf"))


@dataclasses.dataclass(frozen=True)
class DoReFaInput(Quantizer):
    """``quantize_k(clip(x, 0, 1))``: a fixed range, nothing learned or calibrated."""

    def __post_init__(self):
        if not self.spec.format.is_integer or self.spec.format.high < 1 or self.spec.dynamic:
            raise ValueError(f"DoReFa inputs need an integer format and a fixed range, got {self.spec.text}")
        if self.spec.symmetric and self.spec.format.low < 0:
            raise ValueError(f"DoReFa inputs are not negative: write a4 or auint4/sym, got {self.spec.text}")
        if self.spec.scale.name != "float32":
            raise ValueError(f"DoReFa inputs have the fixed scale 1 / (2**k - 1), got {self.spec.text}")

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        return {"learn": {}, "fixed": {}}

    def served_by_spec(self) -> bool:
        return True

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        low, high = self.spec.format.low, self.spec.format.high
        shape = block_ops.scale_shape(x.shape, blocks)
        scale = jnp.full(shape, np.float32(1.0 / (high - low)))
        zero = None if self.spec.symmetric else jnp.full(shape, low, jnp.float32)
        return quantize_with(x, self.spec, scale, zero, blocks, nearest=inclusive(self.spec.format.nearest))  # Eq. (11)


def dorefa(text: str) -> Quantizers:
    """Returns DoReFa quantizers for a rule text.

    Args:
        text: such as ``"w4,a4"``; a signed integer format of the weights means ``2**k`` levels without zero.

    Raises:
        ValueError: for other formats, dynamic inputs or other scale dtypes.

    Example:
        >>> dorefa("w4,a4").weight.text
        "dorefaweight('mid4/channel/sym')"
    """
    return quantizers(text, "dorefa", weight=lambda spec: DoReFaWeight(mid_rise_of(spec)), input=DoReFaInput)
