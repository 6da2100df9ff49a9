"""Outlier channel splitting before GPTQ: for weights that share one scale, in networks whose activations cannot be equalized.

Reference: Zhao, Hu, Dotzel, De Sa, Zhang, ICML 2019, https://arxiv.org/abs/1901.09504. Units whose outgoing weights stand out are
copied first (`lowbit.rewrites.split`): through gelu, silu and the like, which let no factor through. The copies have equal inputs,
which GPTQ sees: what one of them leaves, the next takes.
"""

from lowbit.core.ranges import MSE
from lowbit.rewrites.chain import chain
from lowbit.rewrites.split import split

from .gptq import GPTQ
from .recipe import Recipe


def recipe() -> Recipe:
    """Returns the recipe ``ocs``."""
    return Recipe("ocs", GPTQ(), rewrite=chain(split()), inputs=MSE(), passes=4)
