"""PARQ: the optimizer leads the weights to a 3-bit grid, the network is trained in float; beside rounding in the network.

Command::

    lowbit run experiments/configs/parq_mnist1d.py

Jin, Lin, Xiao et al., PARQ: Piecewise-Affine Regularized Quantization, ICML 2025. One scale per tensor: the proximal map
finds it anew from the weights at every step. Inputs stay in float. ``late``: the map is hard for the last fifth of the
steps, ``early``: for the last half.

Gives in %, mean ± standard deviation of 3 seeds, in 0.4 minutes on 2 CPU cores: float 93.67 ± 1.02, ptq 69.53 ± 6.28,
rtn 93.30 ± 0.87, parq_late 92.20 ± 0.79, parq_early 93.20 ± 0.96.
"""

import optax

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from lowbit.learn.parq import parq
from lowbit.run import Method

RULE = lb.rtn("w3/narrow/tensor")


def _until(share: float, adam: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    assert RULE.weight is not None
    on_grid = parq(adam, RULE.weight, start=0, end=round(share * steps))
    names = {"conv_1": "grid", "conv_2": "grid", "conv_3": "grid"}

    def label(tree):
        return {"params": {name: names.get(name, "rest") for name in tree["params"]}}

    return optax.multi_transform({"grid": on_grid, "rest": adam}, label)


def late(adam: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    return _until(0.8, adam, steps)


def early(adam: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    return _until(0.5, adam, steps)


config = on_mnist1d(
    "parq_mnist1d",
    Method("ptq", inner(RULE)),
    Method("rtn", inner(RULE), QAT),
    Method("parq_late", inner(RULE), QAT, around=late),
    Method("parq_early", inner(RULE), QAT, around=early),
)
