"""Fractional widths learned by gradients (FracBits): what a goal of mean bits gives, beside a uniform width.

Command::

    lowbit run experiments/configs/fracbits_mnist1d.py

Yang, Jin, FracBits: Mixed Precision Quantization via Fractional Bit-Widths, 2021. Weights between the first and the last layer;
inputs stay in float. The loss rises by how far the mean of the learned widths is from 4, or from 3; then LSQ trains on with the widths
as they were rounded. LSQ beside it has one width, and as many scales and steps of training.

Gives in %, mean ± standard deviation of 3 seeds, in 5.5 minutes on one core of a busy machine (an Intel Xeon): float 93.53 ± 0.67, lsq_w4
94.63 ± 0.80, lsq_w3 94.50 ± 0.56, fracbits_4 94.00 ± 0.53, fracbits_3 94.03 ± 0.81. Stored bits a weight, all layers and scales: 5.40, 4.67,
5.40 and 4.67. Every seed ends at 4, 4 and 4 bits, or at 3, 3 and 3.
"""

import jax
import jax.numpy as jnp

import lowbit as lb
from experiments.base import LONGER, QAT, SETTLED, inner, mean_width, on_mnist1d
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
    Method("lsq_w4", inner(lb.lsq("w4/tensor")), LONGER),
    Method("lsq_w3", inner(lb.lsq("w3/tensor")), LONGER),
    Method("fracbits_4", inner(fracbits("w6/tensor")), WIDTHS, penalty=to_four, settled=SETTLED),
    Method("fracbits_3", inner(fracbits("w6/tensor")), WIDTHS, penalty=to_three, settled=SETTLED),
)
