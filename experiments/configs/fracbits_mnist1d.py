"""Fractional widths learned by gradients (FracBits): what a goal of mean bits gives, beside a uniform width.

Command::

    lowbit run experiments/configs/fracbits_mnist1d.py

Yang, Jin, FracBits: Mixed Precision Quantization via Fractional Bit-Widths, 2021. Weights between the first and the last layer;
inputs stay in float. The loss rises by how far the mean of the learned widths is from 4, or from 3;
LSQ has the same widths and, as fractional widths do, one scale for a tensor.

About 6 minutes on 2 idle CPU cores, as `hgq_mnist1d.py`; it was not run to the end yet.
"""

import jax
import jax.numpy as jnp

import lowbit as lb
from experiments.base import QAT, inner, mean_width, on_mnist1d
from lowbit.core.quantizer import QState
from lowbit.plan.rows import Plan
from lowbit.quantizers.fracbits import fracbits
from lowbit.run import Fit, Method

WIDTHS = Fit(epochs=QAT.epochs, batch=QAT.batch, lr=QAT.lr, step_lr=5e-3)
"""The same with a rate for widths at which they can move by several bits."""


def to_four(plan: Plan, params: object, qstate: QState) -> jax.Array:
    """How far the mean width is from 4."""
    return jnp.abs(mean_width(plan, qstate) - 4.0)


def to_three(plan: Plan, params: object, qstate: QState) -> jax.Array:
    """How far the mean width is from 3."""
    return jnp.abs(mean_width(plan, qstate) - 3.0)


config = on_mnist1d(
    "fracbits_mnist1d",
    Method("lsq_w4", inner(lb.lsq("w4/tensor")), QAT),
    Method("lsq_w3", inner(lb.lsq("w3/tensor")), QAT),
    Method("fracbits_4", inner(fracbits("w6/tensor")), WIDTHS, penalty=to_four),
    Method("fracbits_3", inner(fracbits("w6/tensor")), WIDTHS, penalty=to_three),
)
