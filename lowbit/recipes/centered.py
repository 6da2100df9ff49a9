"""GPTQ layer by layer, in the norm of the inputs' covariance, biases taking means back.

Reference: Nagel, van Baalen, Blankevoort, Welling, Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV
2019, https://arxiv.org/abs/1906.04721, section 4.2: the bias takes back the mean that rounding adds. So rounding need not mind
the mean: its error counts by the covariance of the inputs (`lowbit.recipes.inputs`), and every layer, of up to sixteen, is solved on
what the rounded and corrected layers before it make; of more, runs of so many that there are at most sixteen runs.

Means of calibration inputs may mislead: of a sentence encoder's rows more than half are padding, whose means are not those of words.
So plain ``gptq`` is solved beside it, both on three quarters of the batches, and kept where it loses less on the last quarter.

Differs from the paper: means are measured on calibration inputs; rounding is GPTQ's, with scales by search, refit and descent. A
bias that others share, or behind a relu, a factor or a sum, takes nothing back: that layer is solved as by ``gptq``.
"""

from lowbit.core.ranges import MSE

from .gptq import GPTQ
from .gptq import recipe as gptq
from .recipe import Recipe


def recipe() -> Recipe:
    """Returns the recipe ``centered``."""
    return Recipe("centered", GPTQ(is_centered=True), inputs=MSE(), passes=16, rival=gptq())
