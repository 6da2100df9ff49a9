"""Widths learned by gradients: what a bit costs, and what a uniform width gives.

Command::

    lowbit run experiments/configs/hgq_mnist1d.py

Sun et al., Gradient-based Automatic Mixed Precision Quantization for Neural Networks On-Chip, 2024. Weights between the first
and the last layer; inputs stay in float. ``cheap`` and ``dear``: 0.02 and 0.2 of loss for a bit of the mean width.

Gives in %, mean ± standard deviation of 3 seeds, in 5.6 minutes on 2 loaded CPU cores: float 93.70 ± 0.80, lsq_w4
94.33 ± 0.91, hgq_cheap 93.80 ± 0.95, hgq_dear 93.47 ± 1.30, hgq_tensor 93.00 ± 2.00. Stored bits a weight, all layers and
scales: 5.85, 6.97, 5.69 and 4.91.
"""

from typing import Any

import jax

import lowbit as lb
from experiments.base import QAT, inner, mean_width, on_mnist1d
from lowbit.plan.rows import Plan
from lowbit.quantizers.hgq import hgq
from lowbit.run import Fit, Method

WIDTHS = Fit(epochs=QAT.epochs, batch=QAT.batch, lr=QAT.lr, step_lr=1e-2)
"""The same with a rate for widths at which they can move by several bits."""


def cheap(plan: Plan, params: Any, qstate: Any) -> jax.Array:
    """A bit costs 0.02 of loss."""
    return 0.02 * mean_width(plan, qstate)


def dear(plan: Plan, params: Any, qstate: Any) -> jax.Array:
    """A bit costs 0.2 of loss."""
    return 0.2 * mean_width(plan, qstate)


config = on_mnist1d(
    "hgq_mnist1d",
    Method("lsq_w4", inner(lb.lsq("w4")), QAT),
    Method("hgq_cheap", inner(hgq("w6/channel")), WIDTHS, penalty=cheap),
    Method("hgq_dear", inner(hgq("w6/channel")), WIDTHS, penalty=dear),
    Method("hgq_tensor", inner(hgq("w6/tensor")), WIDTHS, penalty=dear),
)
