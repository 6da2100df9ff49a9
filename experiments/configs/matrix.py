"""Five models, several plans each, on every export target that takes them: what the README's table is made from.

Command::

    lowbit run experiments/configs/matrix.py

Needs what ``make test-edge`` installs, and the data of ``constraints/data-edge.txt`` with ``apt-get install
pocketsphinx-testdata``; on 2 CPU cores about 20 minutes, most of them in emulators. What is not installed is listed as not run.
``cp runs/matrix/summary.json experiments/results/matrix.json`` and ``python -m experiments.matrix_table README.md`` write the
table.

Models: a convolutional network of 284 thousand weights and a small transformer, both on scikit-learn's digits; BlazeFace,
pretrained, a residual network of depthwise convolutions; a one-dimensional convolutional network on heartbeats; silero-vad,
pretrained, with its LSTM. One seed; accuracies are of `lowbit.execute` on the whole test set.
"""

import dataclasses
import functools

import lowbit as lb
from experiments import matrix_table
from experiments.configs import edge_ecg, edge_face, edge_voice
from experiments.data import digits
from experiments.models import digits_conv, digits_transformer
from experiments.ranges import with_inputs
from lowbit.core.clipping import Percentile
from lowbit.run import Experiment, Fit, Method, Metric, Suite, cross_entropy, verify
from lowbit.run.metric import right

_MICRO = "gemmlowp_double"
"""The rounding that TFLite-Micro computes."""

_LONG = Percentile(99.9)
"""Of the pretrained networks: see their stories."""


def _integer(name: str, rules: dict, rounding: str = "exact", fit: Fit | None = None) -> Method:
    return Method(name, rules, fit, integer=True, rounding=rounding)


def _of(story: Experiment, *methods: Method, batch: int = 1) -> Experiment:
    """The network of an edge story, of one seed, under other plans."""
    return dataclasses.replace(story, methods=methods, seeds=(0,), baseline=None, evals=(verify(batch=batch),))


_DIGITS = Experiment(
    name="digits_conv",
    data=digits.load,
    model=digits_conv.build,
    metric=Metric("right %", right),
    loss=cross_entropy,
    fit=Fit(epochs=20, batch=50, lr=1e-3),
    methods=(),
    test_batch=397,
    calibration_samples=500,
    calibration_batch=100,
)
_ROWS = dataclasses.replace(
    _DIGITS, name="digits_transformer", model=digits_transformer.build, fit=Fit(epochs=60, batch=50, lr=3e-3)
)
_LSQ = Fit(epochs=10, batch=50, lr=5e-4, step_lr=1e-4)

config = Suite(
    name="matrix",
    experiments=(
        _of(
            _DIGITS,
            _integer("w8a8", {"**": "w8,a8"}),
            _integer("w8a8_micro", {"**": "w8,a8"}, _MICRO),
            _integer("w4a8", {"**": "w4,a8"}),
            _integer("w4a8_micro", {"conv_*/**": "w4,a8", "**": "w4/tensor,a8"}, _MICRO),
            _integer("lsq_w2a8", {"conv_*/**": lb.lsq("w4,a8"), "**": lb.lsq("w2,a8")}, fit=_LSQ),
            Method("w4_g32", {"conv_*/**": "w4", "**": "w4/g32"}),
            batch=16,
        ),
        _of(edge_face.config, _integer("w8a8", {"**": with_inputs("w8", _LONG)}), Method("w8", {"**": "w8"})),
        _of(
            _ROWS,
            _integer("w8a8", {"**": "w8,a8"}),
            _integer("w4a8", {"**": "w4,a8"}),
            Method("w4_g32", {"**": "w4/g32"}),
            batch=16,
        ),
        _of(
            edge_ecg.config,
            _integer("w8a8", {"**": "w8,a8"}),
            _integer("w8a8_micro", {"**": "w8,a8"}, _MICRO),
            _integer("w4a8", {"**": "w4,a8"}),
            batch=16,
        ),
        _of(
            edge_voice.config,
            _integer("w8a8", {"**": with_inputs("w8", _LONG)}),
            _integer("w4a8", {"**": with_inputs("w4", _LONG)}),
        ),
    ),
    report=functools.partial(
        matrix_table.report,
        {
            "digits_conv": "CNN, 284 k weights",
            "edge_face": "BlazeFace",
            "digits_transformer": "transformer",
            "edge_ecg": "1-D CNN, heartbeats",
            "edge_voice": "LSTM, voice",
        },
    ),
)
