"""What the small configs share: MNIST-1D, one narrow network, one schedule; a config's file shows what differs."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

import lowbit as lb
from experiments.data import mnist1d
from experiments.models import conv_1d
from lowbit.core.quantizer import QState
from lowbit.learn.harden import widths
from lowbit.plan.rows import Plan, Row
from lowbit.run import ACCURACY, Eval, Experiment, Fit, Method, Settled, cross_entropy, grids
from lowbit.run.results import Results

QAT = Fit(epochs=20, batch=50, lr=2e-3, step_lr=1e-3)
"""Quantization-aware training from the float parameters, the same for every method: 1,600 steps."""


def inner(rule: str | lb.Quantizers) -> Mapping[str, str | lb.Quantizers]:
    """Returns the rules of `conv_1d`: first and last layer 8 bits rounded to nearest, the three between them ``rule``."""
    return {"conv_0/*": "w8,a8", "head/*": "w8,a8", "**": rule}


LONGER = Fit(epochs=30, batch=50, lr=2e-3, step_lr=1e-3)
"""As long as both trainings of a method that learns widths and trains on with them."""

SETTLED = Settled(Fit(epochs=10, batch=50, lr=1e-3, step_lr=1e-3), lambda row: lb.lsq(f"w{_bits(row)}/tensor"))
"""Half as long again, by LSQ on the widths that were learned, as their papers train on once widths are whole."""


def _bits(row: Row) -> int:
    assert row.weight is not None
    assert row.weight.spec is not None
    return row.weight.spec.format.bits


def mean_width(plan: Plan, qstate: QState) -> jax.Array:
    """Returns the mean bits of the weights whose width is learned."""
    sites = [row.weight for row in plan.quantized if row.weight is not None]
    counts = {s.key: math.prod(s.operand.shape) for s in sites if s.quantizer is not None and not s.quantizer.is_hard}
    bits = widths(plan, qstate)
    return sum((n * bits[key] for key, n in counts.items()), jnp.zeros(())) / sum(counts.values())


def pair(weight: lb.Quantizers, inputs: lb.Quantizers) -> lb.Quantizers:
    """Returns the weight's quantizer of one method and the input's of another."""
    return lb.Quantizers(weight=weight.weight, input=inputs.input)


def on_mnist1d(
    name: str,
    *methods: Method,
    seeds: tuple[int, ...] = (0, 1, 2),
    evals: tuple[Eval, ...] = (grids(),),
    report: Callable[[Results], None] | None = None,
) -> Experiment:
    """Returns an experiment on MNIST-1D: 93 to 94 % in float; accuracy of the packed weights; no edge compiler, no timing."""
    return Experiment(
        name=name,
        data=mnist1d.load,
        model=conv_1d.build,
        metric=ACCURACY,
        loss=cross_entropy,
        fit=Fit(epochs=30, batch=50, lr=5e-3),
        methods=methods,
        seeds=seeds,
        test_batch=1_000,
        evals=evals,
        report=report,
    )
