"""A softmax mixture of widths (EdMIPS): what a bit costs, beside a uniform width.

Command::

    lowbit run experiments/configs/edmips_mnist1d.py

Cai, Vasconcelos, Rethinking Differentiable Search for Mixed-Precision Neural Networks, 2020. Weights between the first and the last
layer; inputs stay in float. ``cheap`` and ``dear``: 0.02 and 0.2 of loss for a bit of the mean width. The temperature falls from
2 to 0.1 over the 1,600 steps.

Then LSQ trains on with the widths that are left; LSQ beside it has one width, and as many scales and steps of training.

Gives in %, mean ± standard deviation of 3 seeds, in 22 minutes on one core of a very busy machine (an Intel Xeon): float 93.53 ± 0.67,
lsq_w4 94.63 ± 0.80, lsq_w3 94.50 ± 0.56, lsq_w2 93.07 ± 0.45, edmips_cheap 93.60 ± 0.20, edmips_dear 92.13 ± 0.85. Stored bits a weight, all
layers and scales: 5.40, 4.67, 3.95, 4.83 and 3.95.
"""

import jax

import lowbit as lb
from experiments.base import LONGER, QAT, SETTLED, inner, mean_width, on_mnist1d
from lowbit.core.quantizer import QState
from lowbit.plan.rows import Plan
from lowbit.quantizers.edmips import edmips
from lowbit.run import Fit, Method

WIDTHS = Fit(epochs=QAT.epochs, batch=QAT.batch, lr=QAT.lr, step_lr=5e-3)
"""The same with a rate for logits at which they can change their order."""


def cheap(plan: Plan, params: object, qstate: QState) -> jax.Array:
    """A bit costs 0.02 of loss."""
    return 0.02 * mean_width(plan, qstate)


def dear(plan: Plan, params: object, qstate: QState) -> jax.Array:
    """A bit costs 0.2 of loss."""
    return 0.2 * mean_width(plan, qstate)


_MIXED = edmips("w6/tensor", among=(2, 3, 4, 6, 8), temperature=2.0, decay=0.998)

config = on_mnist1d(
    "edmips_mnist1d",
    Method("lsq_w4", inner(lb.lsq("w4/tensor")), LONGER),
    Method("lsq_w3", inner(lb.lsq("w3/tensor")), LONGER),
    Method("lsq_w2", inner(lb.lsq("w2/tensor")), LONGER),
    Method("edmips_cheap", inner(_MIXED), WIDTHS, penalty=cheap, settled=SETTLED),
    Method("edmips_dear", inner(_MIXED), WIDTHS, penalty=dear, settled=SETTLED),
)
