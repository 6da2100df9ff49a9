"""A softmax mixture of widths (EdMIPS): what a bit costs, beside a uniform width.

Command::

    lowbit run experiments/configs/edmips_mnist1d.py

Cai, Vasconcelos, Rethinking Differentiable Search for Mixed-Precision Neural Networks, 2020. Weights between the first and the last
layer; inputs stay in float. ``cheap`` and ``dear``: 0.02 and 0.2 of loss for a bit of the mean width. The temperature falls from
2 to 0.1 over the 1,600 steps.

About 6 minutes on 2 idle CPU cores, as `hgq_mnist1d.py`; it was not run to the end yet.
"""

import jax

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from lowbit.core.quantizer import QState
from lowbit.learn.price import price
from lowbit.plan.rows import Plan
from lowbit.quantizers.edmips import edmips
from lowbit.run import Fit, Method

WIDTHS = Fit(epochs=QAT.epochs, batch=QAT.batch, lr=QAT.lr, step_lr=5e-3)
"""The same with a rate for logits at which they can change their order."""


def cheap(plan: Plan, params: object, qstate: QState) -> jax.Array:
    """A bit costs 0.02 of loss."""
    return 0.02 * price(plan, qstate)


def dear(plan: Plan, params: object, qstate: QState) -> jax.Array:
    """A bit costs 0.2 of loss."""
    return 0.2 * price(plan, qstate)


_MIXED = edmips("w6/tensor", among=(2, 3, 4, 6, 8), temperature=2.0, decay=0.998)

config = on_mnist1d(
    "edmips_mnist1d",
    Method("lsq_w4", inner(lb.lsq("w4/tensor")), QAT),
    Method("lsq_w2", inner(lb.lsq("w2/tensor")), QAT),
    Method("edmips_cheap", inner(_MIXED), WIDTHS, penalty=cheap),
    Method("edmips_dear", inner(_MIXED), WIDTHS, penalty=dear),
)
