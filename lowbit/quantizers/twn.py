"""Ternary weight networks: a threshold and a scale from the mean magnitude.

Reference: Li, Liu, Wang, Zhang, Yan, Ternary Weight Networks, 2016, https://arxiv.org/abs/1605.04711. ``W``: weights,
``Delta``: threshold, ``alpha``: scale.

Differs from the paper: the granularity is the rule text's; the gradient is straight through everywhere, as in the
paper's training section, without the scale.
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
class TWN(FromWeights):
    """``alpha`` where ``W > Delta``, ``-alpha`` where ``W < -Delta``, else zero.

    Attributes:
        factor: of the mean magnitude: ``Delta = factor mean |W|``.
    """

    factor: float = 0.7

    def __post_init__(self):
        super().__post_init__()
        if self.spec.format.name != "ternary":
            raise ValueError(f"TWN is ternary, got {self.spec.format.name}; write wternary")
        if not 0.0 < self.factor < 1.0:
            raise ValueError(f"factor must be in (0, 1), got {self.factor}")

    def statistics(self, values: Float[Array, "..."], blocks: tuple[int, ...]) -> dict[str, Array]:
        size = jnp.abs(values)
        delta = exact_mean(size, blocks) * np.float32(self.factor)  # Eq. (6)
        beyond = block_ops.split(size, blocks) > block_ops.spread(delta, size.shape, blocks)
        alpha = exact_mean(size, blocks, block_ops.join(beyond, size.shape, blocks))  # Eq. (5)
        scale = positive_scale(alpha, self.spec)
        return {"scale": scale, "threshold": delta * (1.0 / scale)}

    @property
    def is_nearest(self) -> bool:
        return False

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        threshold = block_ops.spread(qstate["fixed"]["threshold"], x.shape, blocks)

        def nearest(scaled: Array, low: Array | float, high: Array | float) -> Array:
            level = jnp.where(jnp.abs(scaled) > threshold, jnp.sign(scaled), 0.0 * scaled)  # Eq. (3); NaN stays
            return straight_through(scaled, jnp.where(jnp.isinf(scaled), jnp.sign(scaled), level))

        return quantize_with(x, self.spec, qstate["fixed"]["scale"], None, blocks, nearest=nearest)


def twn(text: str, *, factor: float = 0.7) -> Quantizers:
    """Returns ternary weight quantizers for a rule text.

    Args:
        text: ``"wternary"``, with a granularity.
        factor: the threshold over the mean magnitude, in (0, 1).

    Raises:
        ValueError: for another format, or an ``a`` part: inputs have their own quantizers.

    Example:
        >>> twn("wternary").weight.text
        "twn('ternary/channel/sym', factor=0.7)"
    """
    return quantizers(text, "twn", weight=lambda spec: TWN(spec, factor))
