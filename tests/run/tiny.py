"""An experiment small enough for a test, and a config file: 200 made-up signals, a dense network, two epochs."""

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from lowbit.run import ACCURACY, Dataset, Experiment, Fit, Method, Model, Split, cross_entropy, grids, latency


def bumps() -> Dataset:
    """Returns signals whose class is where they are high: learnable in a few steps."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 5, 200).astype(np.int32)
    signals = rng.uniform(0, 0.3, (200, 20)).astype(np.float32)
    for signal, label in zip(signals, labels, strict=True):
        signal[4 * label : 4 * label + 4] += 0.7
    return Dataset("bumps", "made up", Split(signals[:150], labels[:150]), Split(signals[150:], labels[150:]))


def dense(params, state, x):
    """Logits ``[batch, outputs]``."""
    h = jax.nn.relu(x @ params["a"]["w"] + params["a"]["b"])
    return h @ params["c"]["w"] + params["c"]["b"]


def drawn(seed: int, inputs: int, outputs: int):
    """Parameters of `dense`, drawn from ``seed``."""
    a, c = jax.random.split(jax.random.key(seed))
    return {
        "a": {"w": jax.random.normal(a, (inputs, 24)) / 5, "b": jnp.zeros(24)},
        "c": {"w": jax.random.normal(c, (24, outputs)) / 5, "b": jnp.zeros(outputs)},
    }


def build(seed: int) -> Model:
    """Returns the network with parameters drawn from ``seed``."""
    return Model(dense, drawn(seed, 20, 5), {})


FIT = Fit(epochs=2, batch=50, lr=1e-2, step_lr=1e-3)

config = Experiment(
    name="tiny",
    data=bumps,
    model=build,
    metric=ACCURACY,
    loss=cross_entropy,
    fit=FIT,
    methods=(Method("w8a8", {"**": "w8,a8"}), Method("lsq_w4a4", {"**": lb.lsq("w4,a4")}, FIT)),
    seeds=(0,),
    evals=(latency(seconds=0, rest=0), grids()),
    test_batch=50,
    calibration_samples=100,
    calibration_batch=50,
)
