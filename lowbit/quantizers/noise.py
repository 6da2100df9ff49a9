"""Quantization noise: training sees uniform noise of one step, or a random part of the values quantized.

Reference: Defossez, Adi, Synnaeve, DiffQ: Differentiable Model Compression via Quantization Noise, TMLR 2022,
https://arxiv.org/abs/2104.09987, section 3.2 (``rate=None``); Fan et al., Training with Quantization Noise for Extreme
Model Compression (Quant-Noise), ICLR 2021, https://arxiv.org/abs/2004.07320, section 4.1 (``rate``).

Differs from DiffQ: the number of bits is that of the rule text, not learned. Differs from both: from step ``until`` on,
training quantizes everything, which is what is served.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.core.gradients import inclusive
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer, Quantizers
from lowbit.core.ranges import Full, RangeRule, check_range
from lowbit.core.scales import stored_scale
from lowbit.core.spec import Operand
from lowbit.formats.factory import quantizers

_NEVER = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Noise(Quantizer):
    """Noise in training, nearest in serving; for weights.

    Attributes:
        range: the range rule.
        rate: None: every value gets ``step (u - 1/2)``, ``u`` uniform (pseudo-noise); else the share of values that
            is quantized, drawn anew each step, the others exact.
        until: the first step that quantizes everything.
    """

    range: RangeRule = Full()
    rate: float | None = None
    until: int = _NEVER

    def __post_init__(self):
        if self.spec.dynamic:
            raise ValueError(f"noise is for weights, got {self.spec.text}")
        if self.rate is None and not self.spec.format.is_integer:
            raise ValueError(
                f"pseudo-noise needs equal steps, an integer format, got {self.spec.format.name}; or give rate="
            )
        if self.rate is not None and not 0.0 < self.rate <= 1.0:
            raise ValueError(f"rate must be None or in (0, 1], got {self.rate}")
        if self.until < 0:
            raise ValueError(f"until must be a step >= 0, got {self.until}")
        check_range(self.range, self.spec)

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        if "values" not in stats:
            raise ValueError("noise is for weights; give inputs another quantizer")
        scale, zero = self.range.of_values(stats["values"], operand, self.spec)
        fixed = {"scale": stored_scale(scale, self.spec, operand)}
        return {"learn": {}, "fixed": fixed if zero is None else {**fixed, "zero": zero}}

    def _on_grid(self, qstate: QState, x: Array, operand: Operand, nearest) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        fixed = qstate["fixed"]
        return quantize_with(x, self.spec, fixed["scale"], fixed.get("zero"), blocks, nearest=nearest)

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        return self._on_grid(qstate, x, operand, inclusive(self.spec.format.nearest))

    def train(
        self, qstate: QState, x: Float[Array, "..."], operand: Operand, *, key: Array | None, step: Array | None
    ) -> QTensor:
        """Returns ``x`` with noise: levels that are not on the grid until step ``until``.

        Raises:
            ValueError: without a key, or without a step where ``until`` is set.
        """
        if key is None:
            raise ValueError("noise needs key=, a typed key that changes every step")
        if step is None and self.until != _NEVER:
            raise ValueError("noise with until= needs step=, the number of the training step")
        rounded = inclusive(self.spec.format.nearest)

        def nearest(scaled: Array, low: Array | float, high: Array | float) -> Array:
            level = rounded(scaled, low, high)
            u = jax.random.uniform(key, scaled.shape, scaled.dtype)
            noisy = scaled + (u - 0.5) if self.rate is None else jnp.where(u < self.rate, level, scaled)
            return noisy if step is None else jnp.where(step >= self.until, level, noisy)

        return self._on_grid(qstate, x, operand, nearest)

    def limit(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> tuple[Quantizer, QState, int]:
        return dataclasses.replace(self, until=min(self.until, 1000)), qstate, min(self.until, 1000)


def noise(text: str, *, range: RangeRule = Full(), rate: float | None = None, until: int = _NEVER) -> Quantizers:
    """Returns weight quantizers that train with noise.

    Args:
        text: such as ``"w4"``; integer formats, or with ``rate`` every format.
        range: the range rule.
        rate: None for pseudo-noise, else the share of values quantized per step, in (0, 1].
        until: the first step that quantizes everything.

    Raises:
        ValueError: for another format or rate, or an ``a`` part.

    Example:
        >>> noise("w4", rate=0.5, until=1000).weight.text
        "noise('int4/channel/sym', range=Full(), rate=0.5, until=1000)"
    """
    return quantizers(text, "noise", weight=lambda spec: Noise(spec, range, rate, until))
