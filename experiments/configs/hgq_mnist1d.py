"""Widths learned by gradients: what a bit costs, and what uniform widths of as many bits give.

Command::

    lowbit run experiments/configs/hgq_mnist1d.py

Sun et al., Gradient-based Automatic Mixed Precision Quantization for Neural Networks On-Chip, 2024. Weights between the first
and the last layer; inputs stay in float. ``cheap`` and ``dear``: 0.02 and 0.2 of loss for a bit of the mean width.

RESULT
"""

from typing import Any

import jax
import jax.numpy as jnp

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from experiments.config import Fit, Method
from experiments.job import run as run
from lowbit.learn.harden import widths
from lowbit.plan.rows import Plan
from lowbit.quantizers.hgq import hgq

WIDTHS = Fit(epochs=QAT.epochs, batch=QAT.batch, lr=QAT.lr, step_lr=1e-2)
"""The same with a rate for widths at which they can move by several bits."""


def _mean(plan: Plan, qstate: Any) -> jax.Array:
    """The mean bits of the weights whose width is learned."""
    sites = {row.weight.key: row.weight for row in plan.quantized if row.weight is not None}
    bits = {k: b for k, b in widths(plan, qstate).items() if not sites[k].quantizer.is_hard}
    counts = {k: float(jnp.zeros(sites[k].operand.shape).size) for k in bits}
    return sum(counts[k] * bits[k] for k in bits) / sum(counts.values())


def cheap(plan: Plan, params: Any, qstate: Any) -> jax.Array:
    """A bit costs 0.02 of loss."""
    return 0.02 * _mean(plan, qstate)


def dear(plan: Plan, params: Any, qstate: Any) -> jax.Array:
    """A bit costs 0.2 of loss."""
    return 0.2 * _mean(plan, qstate)


config = on_mnist1d(
    "hgq_mnist1d",
    Method("lsq_w4", inner(lb.lsq("w4")), QAT),
    Method("lsq_w2", inner(lb.lsq("w2")), QAT),
    Method("hgq_cheap", inner(hgq("w6/channel")), WIDTHS, penalty=cheap),
    Method("hgq_dear", inner(hgq("w6/channel")), WIDTHS, penalty=dear),
    Method("hgq_tensor", inner(hgq("w6/tensor")), WIDTHS, penalty=dear),
)
