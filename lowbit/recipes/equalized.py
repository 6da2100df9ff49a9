"""Equalization, GPTQ, bias correction: for weights that share one scale, and for depthwise layers.

Reference: Nagel, van Baalen, Blankevoort, Welling, Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV
2019, https://arxiv.org/abs/1906.04721. Channels exchange range first (`lowbit.rewrites.equalize`, clips with a bound by channel),
so that one scale serves all of them; GPTQ rounds; the mean that is left is taken back by biases
(`lowbit.rewrites.bias_correction`). Fold batch norms before (`lowbit.rewrites.batch_norm.fold`).

Differs from the paper: means are those of calibration inputs, not of the norms; rounding is GPTQ's, not to the nearest. Biases move
once all is solved (`centered` moves each before the next layer is solved: where calibration inputs are of another kind than what is
served, their means mislead it more).
"""

from lowbit.core.ranges import MSE
from lowbit.rewrites.chain import chain
from lowbit.rewrites.equalize import equalize

from .gptq import GPTQ
from .recipe import Recipe


def recipe() -> Recipe:
    """Returns the recipe ``equalized``."""
    return Recipe("equalized", GPTQ(), rewrite=chain(equalize(bounds=True)), inputs=MSE(), passes=4, is_corrected=True)
