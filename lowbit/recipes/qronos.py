"""GPTQ aimed at the float model's results, layer by layer, with biases that take means back.

Reference: Zhang et al., Qronos: Correcting the Past by Shaping the Future in Post-Training
Quantization, 2025, https://arxiv.org/abs/2505.11695: ``min_Q |Q^T X_q - W^T X|`` with ``X_q`` as the rounded layers before
leave the inputs; as the target ``W*`` of `lowbit.solvers.target`, with GPTQ behind it.

Needs calibration inputs like those that are served: a channel that they hardly use is one of which little is known but rounding, and
the target leaves little of it. A face detector calibrated on photographs with few faces loses what it finds faces by.

Differs from the paper: the target is taken in closed form with a ridge; where a bias follows, moments are taken about means and
the bias takes these back (`lowbit.recipes.inputs`); scales by search, refit and descent as in ``gptq``.
"""

import dataclasses

from .centered import recipe as centered
from .recipe import Recipe


def recipe() -> Recipe:
    """Returns the recipe ``qronos``."""
    base = centered()
    return base.named("qronos", "", solver=dataclasses.replace(base.solver, alpha=1.0))
