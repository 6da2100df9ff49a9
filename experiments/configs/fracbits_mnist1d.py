"""Fractional widths learned by gradients (FracBits): what a goal of mean bits gives, beside a uniform width.

Command::

    lowbit run experiments/configs/fracbits_mnist1d.py

Yang, Jin, FracBits: Mixed Precision Quantization via Fractional Bit-Widths, 2021. Weights between the first and the last layer;
inputs stay in float. The loss rises by how far the mean of the learned widths is from 4, or from 3; then LSQ trains on with the widths
as they were rounded. LSQ beside it has one width, and as many scales and steps of training.

Gives in %, mean ± standard deviation of 3 seeds, in 15.4 minutes on 2 very busy CPU cores (92 seconds of a core; an Intel Xeon): float
93.33 ± 0.80, lsq_w4 93.73 ± 0.12, lsq_w3 93.53 ± 0.67, fracbits_4 79.87 ± 4.85, fracbits_3 89.20 ± 1.35. Stored bits a weight, all layers
and scales: 5.85, 5.13, 4.19 and 3.95. Goals count the first and the last layer, which keep 8 bits: the learned widths end at 2.4 to 2.5 and
at 2.0 to 2.2 bits, and those in the middle between two grids lose most when they are rounded.
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
