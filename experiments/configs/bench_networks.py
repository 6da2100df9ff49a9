"""Latency of whole networks in `lowbit.execute` beside `jax.jit`: the demo's, in 8 and 4 bits and in integers alone.

    lowbit run experiments/configs/bench_networks.py       two minutes; close everything else

Every rule and batch interleaved with float32; medians and minima. Weights are random: this measures time alone, and how far
outputs are from float's. ``cp runs/bench_networks/times.json experiments/results/bench_networks.json``.
"""

import jax
import numpy as np

from experiments.models import small_conv
from lowbit.run import Dataset, Experiment, Method, beside_float, latency, timed, unlabelled


def data() -> Dataset:
    """Random images."""
    images = jax.random.uniform(jax.random.key(2), (500, 28, 28, 1))
    return unlabelled("random images", np.asarray(images), calibrated=100)


config = Experiment(
    name="bench_networks",
    data=data,
    model=small_conv.build,
    metric=None,
    methods=(
        Method("w8a8", {"**": "w8,a8"}),
        Method("w4a8", {"**": "w4,a8"}),
        Method("integer_w8a8", {"**": "w8,a8"}, integer=True),
    ),
    seeds=(0,),
    evals=(beside_float(), latency(batches=(1, 16, 100, 500), seconds=12.0)),
    report=timed,
)
