"""Statistics-based quantization (StatsQ): a step that follows the mean magnitude, so that weights oscillate less.

Reference: Liu, Liu, Cheng, Oscillation-free Quantization for Low-bit Vision Transformers, ICML 2023,
https://arxiv.org/abs/2302.02210, section 3.2. ``w``: weights, ``alpha = 2 mean |w|``: the clip, ``b``: bits.

The grid is mid-rise: ``2**b`` levels, none of them zero, from ``-alpha (1 - 2**-b)`` to ``alpha (1 - 2**-b)``.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.core.gradients import unmasked
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizers
from lowbit.core.spec import Operand
from lowbit.core.weight_statistics import FromWeights, exact_mean, positive_scale
from lowbit.formats.factory import quantizers
from lowbit.formats.signs import MidRise, mid_rise_of


@dataclasses.dataclass(frozen=True)
class StatsQ(FromWeights):
    """Mid-rise grid whose clip is twice the mean magnitude; the gradient passes straight through, clipped or not.

    As in the authors' training code; Eq. (7) says only what the value is. The clip is held: no gradient goes through it.
    """

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.spec.format, MidRise):
            raise ValueError(f"StatsQ has a mid-rise grid, got {self.spec.format.name}; write w2 or wmid2")

    def statistics(self, values: Float[Array, "..."], blocks: tuple[int, ...]) -> dict[str, Array]:
        clip = 2.0 * exact_mean(jnp.abs(values), blocks)  # alpha
        half_step = clip * np.float32(2.0**-self.spec.format.bits)
        return {"scale": positive_scale(half_step, self.spec)}

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        nearest = unmasked(self.spec.format.nearest)
        return quantize_with(x, self.spec, qstate["fixed"]["scale"], None, blocks, nearest=nearest)


def statsq(text: str) -> Quantizers:
    """Returns StatsQ weight quantizers for a rule text.

    Args:
        text: such as ``"w2"``; a signed integer format means the mid-rise grid of as many bits, ``wmid2``.

    Raises:
        ValueError: for other formats, or an ``a`` part: inputs have their own quantizers.

    Example:
        >>> statsq("w3").weight.text
        "statsq('mid3/channel/sym')"
    """
    return quantizers(text, "statsq", weight=lambda spec: StatsQ(mid_rise_of(spec)))
