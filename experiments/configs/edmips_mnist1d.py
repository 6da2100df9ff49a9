"""A softmax mixture of widths (EdMIPS): what a bit costs, beside a uniform width.

Command::

    lowbit run experiments/configs/edmips_mnist1d.py

Cai, Vasconcelos, Rethinking Differentiable Search for Mixed-Precision Neural Networks, 2020. Weights between the first and the last
layer; inputs stay in float. ``cheap`` and ``dear``: 0.02 and 0.2 of loss for a bit of the mean width. The temperature falls from
2 to 0.1 over the 1,600 steps.

Gives in %, mean ± standard deviation of 3 seeds, in 8.8 minutes on 2 very busy CPU cores (80 seconds of a core; an Intel Xeon): float
93.33 ± 0.80, lsq_w4 93.73 ± 0.12, edmips_cheap 91.80 ± 1.85, edmips_dear 83.43 ± 4.05. Stored bits a weight, all layers and scales: 5.85, 5.24
and 3.95. The cheap bit leaves 4, 4 and 3 bits (4, 4, 4 for one seed), the dear one 2, 2 and 2.
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
