"""Channels balanced, GPTQ, then the whole network learned at once on its results: rounding, scales, input steps and biases.

Reference: Wang, Zheng, Liu, Li, Leveraging Inter-Layer Dependency for Post-Training Quantization, NeurIPS 2022,
https://papers.neurips.cc/paper_files/paper/2022/hash/2c570b0f9938c7a58a612e5b00af9cc0-Abstract-Conference.html: what a layer leaves, later ones can take back, where all are learned on what the network
makes. For networks small enough that a step over all of it is cheap, with calibration inputs in plenty.

Differs from the paper: places of weights are learned straight through the rounding, from GPTQ's levels, not by an annealed softmax
(`lowbit.solvers.brecq`, of which this is one block); entries of inputs are dropped as in QDrop, not mixed by annealing. What does not
come out better on held-out calibration batches stays as GPTQ left it. Before GPTQ channels get the factors of `lowbit.rewrites.balance`:
learning straight through the rounding starts where rounding costs least.
"""

from lowbit.core.ranges import MSE
from lowbit.rewrites.balance import balance
from lowbit.rewrites.chain import chain
from lowbit.solvers.brecq import Reconstruction

from .gptq import GPTQ
from .recipe import Recipe

ALL = 1 << 30
"""Operations in a block: more than a program has."""


def recipe() -> Recipe:
    """Returns the recipe ``nwq``."""
    blocks = Reconstruction(steps=600, rates=(0.001,), most=ALL)
    return Recipe("nwq", GPTQ(), chain(balance()), MSE(), passes=4, blocks=blocks)
