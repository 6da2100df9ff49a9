"""GPTQ with half of what rounding before a layer did to its inputs taken back: where calibration inputs are few.

Reference: Arai, Ichikawa, Quantization Error Propagation: Revisiting Layer-Wise Post-Training Quantization, 2025,
https://arxiv.org/abs/2504.09629, Proposition 5.4 with ``alpha = 1/2``. The target is a regression on the calibration inputs; with fewer
rows than some four times the inputs of a layer all of it (`lowbit.recipes.qronos`) follows their noise.

Differs from the paper: where a bias follows, moments are taken about means, which the bias takes back.
"""

import dataclasses

from .qronos import recipe as qronos
from .recipe import Recipe


def recipe() -> Recipe:
    """Returns the recipe ``qep``."""
    base = qronos()
    return base.named("qep", "", solver=dataclasses.replace(base.solver, alpha=0.5))
