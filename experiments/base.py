"""What the small configs share: MNIST-1D, one narrow network, one schedule; a config's file shows what differs."""

from collections.abc import Callable, Mapping

import lowbit as lb
from experiments.data import mnist1d
from experiments.models import conv_1d
from lowbit.run import ACCURACY, Eval, Experiment, Fit, Method, cross_entropy, grids
from lowbit.run.results import Results

QAT = Fit(epochs=20, batch=50, lr=2e-3, step_lr=1e-3)
"""Quantization-aware training from the float parameters, the same for every method: 1,600 steps."""


def inner(rule: str | lb.Quantizers) -> Mapping[str, str | lb.Quantizers]:
    """Returns the rules of `conv_1d`: first and last layer 8 bits rounded to nearest, the three between them ``rule``."""
    return {"conv_0/*": "w8,a8", "head/*": "w8,a8", "**": rule}


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
