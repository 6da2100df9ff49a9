"""GPTQ aimed at the float model's results, layer by layer, with biases that take means back.

Reference: Zhang et al., Qronos: Correcting the Past by Shaping the Future in Post-Training
Quantization, 2025, https://arxiv.org/abs/2505.11695: ``min_Q |Q^T X_q - W^T X|`` with ``X_q`` as the rounded layers before
leave the inputs; as the target ``W*`` of `lowbit.solvers.target`, with GPTQ behind it.

Differs from the paper: the target is taken in closed form with a ridge; where a bias follows, moments are taken about means and
the bias takes these back (`lowbit.recipes.inputs`); scales by search, refit and descent as in ``gptq``.
"""

from lowbit.core.ranges import MSE

from .gptq import GPTQ
from .recipe import Recipe


def recipe() -> Recipe:
    """Returns the recipe ``qronos``."""
    return Recipe("qronos", GPTQ(alpha=1.0, is_centered=True), inputs=MSE(), passes=16)
