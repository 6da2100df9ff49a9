"""Stretched elastic quantization (SEQ) for ternary and 2 bits: a learned range cut into equal parts.

Reference: Liu et al., ParetoQ: Scaling Laws in Extremely Low-bit LLM Quantization, 2025,
https://arxiv.org/abs/2502.02631, section 3.2. ``alpha``: the learned range, ``W``: weights; ``[-alpha, alpha]`` is cut
into 3 (ternary) or 4 (2 bits) equal parts, each represented by its middle.

``W`` gets ``[|W / alpha| < 1]``, ``alpha`` gets ``W_Q / alpha - W / alpha [|W / alpha| < 1]``: values up to the end of the outer
parts still get a gradient, where LSQ stops at the outer levels.

Differs from the paper: ``alpha`` is kept as the distance that one level counts for, 2 / 3 (ternary) or 1 / 4 (2 bits) of it, whose
gradient is as many times larger. It is scaled by ``1 / sqrt(N Qp)``, LSQ's rule for the weights that share the step and the
largest level, 1 or 3; the authors' code divides by the root of all weights of the matrix, whatever shares ``alpha``. Their code
also clips at 0.99 of the range, values and gradients; here values end on the outer level, and gradients with the range.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.core import blocks as block_ops
from lowbit.core.extremes import largest_magnitude
from lowbit.core.gradients import scale_gradient, straight_through
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.rounding import clip_between
from lowbit.core.scales import scale_of_zeros, stored_scale
from lowbit.core.spec import Operand
from lowbit.formats.factory import quantizers
from lowbit.formats.signs import mid_rise_of


@dataclasses.dataclass(frozen=True)
class SEQ(Quantizer):
    """A learned range cut into as many equal parts as there are levels."""

    def __post_init__(self):
        if self.spec.format.name not in ("ternary", "mid2"):
            raise ValueError(f"SEQ is for ternary and 2 bits, got {self.spec.format.name}; write wternary or w2")
        if not self.spec.symmetric or self.spec.dynamic:
            raise ValueError(f"SEQ is for weights and symmetric, got {self.spec.text}")

    @property
    def _parts_to_level(self) -> float:
        """Levels per half range: 3/2 for ternary (levels -1, 0, 1), 4 for 2 bits (levels -3, -1, 1, 3)."""
        return 1.5 if self.spec.format.name == "ternary" else 4.0

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        if "values" not in stats:
            raise ValueError("SEQ is for weights; give inputs another quantizer")
        values = stats["values"].astype(jnp.float32)
        reach = block_ops.reduce_blocks(values, self.spec.granularity.blocks(operand), largest_magnitude)  # alpha
        step = jnp.where(reach == 0, scale_of_zeros(self.spec), reach * np.float32(1.0 / self._parts_to_level))
        return {"learn": {"step": step}, "fixed": {}}

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        operand = dataclasses.replace(operand, shape=tuple(x.shape))
        blocks = self.spec.granularity.blocks(operand)
        count = float(np.prod([min(n, b) for n, b in zip(x.shape, blocks, strict=True)], initial=1.0))
        step = scale_gradient(jnp.abs(qstate["learn"]["step"]), 1.0 / math.sqrt(count * self.spec.format.high))

        def nearest(scaled: Array, low: Array | float, high: Array | float) -> Array:
            inside = clip_between(scaled, -self._parts_to_level, self._parts_to_level)
            return straight_through(inside, self.spec.format.nearest(scaled, low, high))

        return quantize_with(x, self.spec, stored_scale(step, self.spec, operand), None, blocks, nearest=nearest)


def seq(text: str) -> Quantizers:
    """Returns SEQ weight quantizers for a rule text.

    Args:
        text: ``"wternary"`` or ``"w2"`` (the mid-rise grid ``wmid2``), with a granularity.

    Raises:
        ValueError: for another format, or an ``a`` part: inputs have their own quantizers.

    Example:
        >>> seq("w2").weight.text
        "seq('mid2/channel/sym')"
    """
    return quantizers(text, "seq", weight=lambda spec: SEQ(mid_rise_of(spec)))
