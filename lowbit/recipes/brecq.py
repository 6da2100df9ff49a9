"""GPTQ, then blocks learned together on what they make: rounding, scales, input steps and biases.

Reference: Li et al., BRECQ, ICLR 2021, https://arxiv.org/abs/2102.05426; Wei et al., QDrop, ICLR 2022,
https://arxiv.org/abs/2203.05740. What differs is said in `lowbit.solvers.brecq`. A block that does not come out better on held-out
calibration batches stays as GPTQ left it.
"""

from lowbit.core.ranges import MSE
from lowbit.solvers.brecq import Reconstruction

from .gptq import GPTQ
from .recipe import Recipe


def recipe() -> Recipe:
    """Returns the recipe ``brecq``."""
    return Recipe("brecq", GPTQ(), inputs=MSE(), passes=4, blocks=Reconstruction())
