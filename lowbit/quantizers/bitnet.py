"""BitNet b1.58: ternary weights by rounding to the mean magnitude.

Reference: Ma, Wang, et al., The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits, 2024,
https://arxiv.org/abs/2402.17764, section 2. ``W``: weights, ``gamma``: mean magnitude.

Differs from the paper: no ``epsilon`` beside ``gamma`` (a block of zeros has scale 1); the granularity is the rule
text's (the paper: ``/tensor``). Its inputs are ``rtn("a8/dynamic")``: 8 bits, absmax per token.

On Gaussian weights its error is 1.41 dB above the best ternary grid's: the threshold ``0.5 mean |W|`` is low.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.core.gradients import unmasked
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizers
from lowbit.core.spec import Operand
from lowbit.core.weight_statistics import FromWeights, exact_mean, positive_scale
from lowbit.formats.factory import quantizers


@dataclasses.dataclass(frozen=True)
class BitNet(FromWeights):
    """``gamma RoundClip(W / gamma, -1, 1)`` with ``gamma = mean |W|``; the gradient passes straight through."""

    def __post_init__(self):
        super().__post_init__()
        if self.spec.format.name != "ternary":
            raise ValueError(f"BitNet b1.58 is ternary, got {self.spec.format.name}; write wternary")

    def statistics(self, values: Float[Array, "..."], blocks: tuple[int, ...]) -> dict[str, Array]:
        return {"scale": positive_scale(exact_mean(jnp.abs(values), blocks), self.spec)}  # Eq. (3)

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        nearest = unmasked(self.spec.format.nearest)  # Eqs. (1), (2)
        return quantize_with(x, self.spec, qstate["fixed"]["scale"], None, blocks, nearest=nearest)


def bitnet(text: str) -> Quantizers:
    """Returns BitNet b1.58 weight quantizers for a rule text.

    Args:
        text: ``"wternary/tensor"``; other granularities work.

    Raises:
        ValueError: for another format, or an ``a`` part: inputs have their own quantizers.

    Example:
        >>> bitnet("wternary/tensor").weight.text
        "bitnet('ternary/tensor/sym')"
    """
    return quantizers(text, "bitnet", weight=BitNet)
