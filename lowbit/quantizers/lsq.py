"""Learned step size quantization (LSQ).

Reference: Esser, McKinstry, Bablani, Appuswamy, Modha, Learned step size quantization, ICLR 2020,
https://arxiv.org/abs/1902.08153. ``s``: step size, ``v``: the value, ``Qp``: the largest level, ``N``: values per step.

Differs from the paper: from 4 bits up the step starts at the least mean squared error, because the paper's
``2 E|v| / sqrt(Qp)`` is 12.8 dB off at 8 bits on Gaussian data; ``start="paper"`` restores it. Inputs keep an integer
zero point, set once from their range, so that one rule serves inputs of any sign; for inputs that are never negative it
is the paper's unsigned grid, and its ``Qp`` of ``2**b - 1`` is what scales the gradient of every affine step.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.core import blocks as block_ops
from lowbit.core.extremes import at_most
from lowbit.core.gradients import scale_gradient
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.ranges import MSE, Full
from lowbit.core.scales import largest_scale, signed_step, stored_scale
from lowbit.core.spec import Operand
from lowbit.core.statistics import MinMax, Sample, Statistic
from lowbit.formats.factory import quantizers


@dataclasses.dataclass(frozen=True)
class LSQ(Quantizer):
    """A step size that is a trained parameter.

    Attributes:
        start: ``"mse"``, ``"paper"`` (section 2.1) or ``"auto"``: the paper's below 4 bits.
    """

    start: str = "auto"

    def __post_init__(self):
        if self.start not in ("auto", "mse", "paper"):
            raise ValueError(f"start must be 'auto', 'mse' or 'paper', got {self.start!r}")
        if self.spec.dynamic:
            raise ValueError("LSQ learns a stored step; it cannot be /dynamic")
        if not self.spec.format.is_integer:
            raise ValueError(f"LSQ needs an integer format, got {self.spec.format.name}")
        if self.spec.format.high < 1:
            raise ValueError(f"LSQ needs a positive level, got {self.spec.format.name}; wbinary is {{-1, +1}}")

    def needs(self, operand: Operand) -> tuple[Statistic, ...]:
        return (MinMax(self.spec.granularity, operand.contract), Sample())

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        by_error = self.start == "mse" or (self.start == "auto" and self.spec.format.bits >= 4)
        if "values" in stats:
            values = stats["values"].astype(jnp.float32)
            blocks = self.spec.granularity.blocks(operand)
            step, zero = (MSE() if by_error else Full()).of_values(values, operand, self.spec)
            share = np.float32(1.0 / _per_scale(values.shape, blocks))
            mean = block_ops.reduce_blocks(jnp.abs(values) * share, blocks, jnp.sum)  # a sum of shares: no overflow
        else:
            step, zero = (MSE() if by_error else Full()).of_stats(stats, operand, self.spec)
            sample = jnp.abs(stats["sample"])
            mean = jnp.sum(sample * np.float32(1.0 / sample.size)).reshape(step.shape)
        if not by_error:
            top = self.spec.format.high - (0.0 if zero is None else zero)  # Qp
            paper = 2.0 * mean / jnp.sqrt(jnp.maximum(top, 1.0))  # section 2.1: s = 2 E|v| / sqrt(Qp)
            scale = at_most(paper, largest_scale(self.spec))
            step = jnp.where(paper == 0, step, jnp.where(step < 0, -scale, scale))
        return {"learn": {"step": step}, "fixed": {} if zero is None else {"zero": zero}}

    def served_by_spec(self) -> bool:
        return True

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        operand = dataclasses.replace(operand, shape=tuple(x.shape))
        blocks = self.spec.granularity.blocks(operand)
        zero = qstate["fixed"].get("zero")
        count = _per_scale(x.shape if operand.is_weight else x.shape[1:], blocks if operand.is_weight else blocks[1:])
        low, high = self.spec.format.low, self.spec.format.high
        steps = high if self.spec.symmetric else high - low  # Qp; of an affine grid, that of the paper's unsigned one
        step = scale_gradient(
            signed_step(qstate["learn"]["step"], self.spec), 1.0 / math.sqrt(count * steps)
        )  # g, section 2.2
        return quantize_with(x, self.spec, stored_scale(step, self.spec, operand), zero, blocks)  # Eqs. (1) to (3)


def _per_scale(shape: tuple[int, ...], blocks: tuple[int, ...]) -> float:
    return float(np.prod([min(n, b) for n, b in zip(shape, blocks, strict=True)], initial=1.0))


def lsq(text: str, *, start: str = "auto") -> Quantizers:
    """Returns learned-step-size quantizers for a rule text.

    Args:
        text: such as ``"w4,a4"``; integer formats.
        start: how steps start: ``"auto"`` (paper's rule below 4 bits, least squares from there), ``"mse"``, ``"paper"``.

    Example:
        >>> lsq("w4,a4").weight.text
        "lsq('int4/channel/sym', start='auto')"
    """
    return quantizers(text, "lsq", both=lambda spec: LSQ(spec, start))
