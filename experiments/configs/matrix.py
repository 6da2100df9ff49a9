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

import lowbit as lb
from experiments.config import Fit, Method
from experiments.configs import edge_ecg, edge_face, edge_voice
from experiments.data import digits
from experiments.matrix import Case, Matrix, Variant
from experiments.matrix_job import run as run
from experiments.models import digits_conv, digits_transformer
from experiments.ranges import with_inputs
from experiments.story import Metric, Story, accuracy, cross_entropy
from lowbit.core.clipping import Percentile

_MICRO = "gemmlowp_double"
"""The rounding that TFLite-Micro computes."""

_LONG = Percentile(99.9)
"""Of the pretrained networks: see their stories."""

_DIGITS = Story(
    name="digits_conv",
    data=digits.load,
    model=digits_conv.build,
    metric=Metric("right %", accuracy),
    error=cross_entropy,
    fit=Fit(epochs=20, batch=50, lr=1e-3),
    methods=(),
    test_batch=397,
    calibration_samples=500,
)
_ROWS = Story(
    name="digits_transformer",
    data=digits.load,
    model=digits_transformer.build,
    metric=Metric("right %", accuracy),
    error=cross_entropy,
    fit=Fit(epochs=60, batch=50, lr=3e-3),
    methods=(),
    test_batch=397,
    calibration_samples=500,
)
_LSQ = Fit(epochs=10, batch=50, lr=5e-4, step_lr=1e-4)

config = Matrix(
    name="matrix",
    cases=(
        Case(
            "CNN, 284 k weights",
            _DIGITS,
            (
                Variant(Method("w8a8", {"**": "w8,a8"})),
                Variant(Method("w8a8_micro", {"**": "w8,a8"}), rounding=_MICRO),
                Variant(Method("w4a8", {"**": "w4,a8"})),
                Variant(Method("w4a8_micro", {"conv_*/**": "w4,a8", "**": "w4/tensor,a8"}), rounding=_MICRO),
                Variant(Method("lsq_w2a8", {"conv_*/**": lb.lsq("w4,a8"), "**": lb.lsq("w2,a8")}, _LSQ)),
                Variant(Method("w4_g32", {"conv_*/**": "w4", "**": "w4/g32"}), is_integer=False),
            ),
            batch=16,
        ),
        Case(
            "BlazeFace",
            edge_face.config,
            (
                Variant(Method("w8a8", {"**": with_inputs("w8", _LONG)})),
                Variant(Method("w8", {"**": "w8"}), is_integer=False),
            ),
        ),
        Case(
            "transformer",
            _ROWS,
            (
                Variant(Method("w8a8", {"**": "w8,a8"})),
                Variant(Method("w4a8", {"**": "w4,a8"})),
                Variant(Method("w4_g32", {"**": "w4/g32"}), is_integer=False),
            ),
            batch=16,
        ),
        Case(
            "1-D CNN, heartbeats",
            edge_ecg.config,
            (
                Variant(Method("w8a8", {"**": "w8,a8"})),
                Variant(Method("w8a8_micro", {"**": "w8,a8"}), rounding=_MICRO),
                Variant(Method("w4a8", {"**": "w4,a8"})),
            ),
            batch=16,
        ),
        Case(
            "LSTM, voice",
            edge_voice.config,
            (
                Variant(Method("w8a8", {"**": with_inputs("w8", _LONG)})),
                Variant(Method("w4a8", {"**": with_inputs("w4", _LONG)})),
            ),
        ),
    ),
)
