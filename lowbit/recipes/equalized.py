"""Equalization, then GPTQ with biases that take means back: for weights that share one scale, and for depthwise layers.

Reference: Nagel, van Baalen, Blankevoort, Welling, Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV
2019, https://arxiv.org/abs/1906.04721. Channels exchange range first (`lowbit.rewrites.equalize`, clips with a bound by channel),
so that one scale serves all of them; GPTQ rounds, layer by layer, and each bias takes the mean back (`lowbit.recipes.inputs`). Fold
batch norms before (`lowbit.rewrites.batch_norm.fold`).

Differs from the paper: means are those of calibration inputs, not of the norms; rounding is GPTQ's.
"""

from lowbit.rewrites.chain import chain
from lowbit.rewrites.equalize import equalize

from .centered import recipe as centered
from .recipe import Recipe


def recipe() -> Recipe:
    """Returns the recipe ``equalized``."""
    return centered().named("equalized", "", rewrite=chain(equalize(bounds=True)))
