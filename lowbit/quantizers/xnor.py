"""Binary weights with the mean magnitude as scale (XNOR-Net, binary weight networks).

Reference: Rastegari, Ordonez, Redmon, Farhadi, XNOR-Net, ECCV 2016, https://arxiv.org/abs/1603.05279. ``W``: weights,
``alpha``: scale, ``n``: weights per scale.

Differs from the paper: zero, whose sign is not +-1, takes -1; there is one scale per granule of the rule text (the
paper: per filter, `/channel`). Inputs are not binarized here.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.core import blocks as block_ops
from lowbit.core.gradients import straight_through
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizers
from lowbit.core.spec import Operand
from lowbit.core.weight_statistics import FromWeights, exact_mean, positive_scale
from lowbit.formats.factory import quantizers


@dataclasses.dataclass(frozen=True)
class XNOR(FromWeights):
    """``alpha sign(W)`` with ``alpha = mean |W|``: the least squares binary approximation."""

    def __post_init__(self):
        super().__post_init__()
        if self.spec.format.name != "binary":
            raise ValueError(f"XNOR is binary, got {self.spec.format.name}; write wbinary")

    def statistics(self, values: Float[Array, "..."], blocks: tuple[int, ...]) -> dict[str, Array]:
        return {"scale": positive_scale(exact_mean(jnp.abs(values), blocks), self.spec)}  # Eq. (6)

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        count = float(np.prod([min(n, b) for n, b in zip(x.shape, blocks, strict=True)], initial=1.0))
        alpha = qstate["fixed"]["scale"]

        def nearest(scaled: Array, low: Array | float, high: Array | float) -> Array:
            level = self.spec.format.nearest(scaled, low, high)
            # Section 3.1: dC/dW = dC/dW~ (1/n + dsign/dW alpha), dsign/dW = 1 where |W| < 1. ``scaled`` is W / alpha, and
            # the level is multiplied by alpha afterwards.
            alpha_here = block_ops.spread(alpha, x.shape, blocks)
            inside = block_ops.split(jnp.abs(x.astype(jnp.float32)), blocks) < 1.0
            slope = np.float32(1.0 / count) + jnp.where(inside, alpha_here, 0.0)
            return straight_through(scaled * slope, level)

        return quantize_with(x, self.spec, alpha, None, blocks, nearest=nearest)


def xnor(text: str) -> Quantizers:
    """Returns binary weight quantizers for a rule text.

    Args:
        text: ``"wbinary"``, with a granularity.

    Raises:
        ValueError: for another format, or an ``a`` part: inputs have their own quantizers.

    Example:
        >>> xnor("wbinary").weight.spec.text
        'binary/channel/sym'
    """
    return quantizers(text, "xnor", weight=XNOR)
