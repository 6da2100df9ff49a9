"""The error of weights beside numpy, for a network of two arguments: what rounding takes, and nothing of a float row."""

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.run import Experiment, Method, Model, latency, run, unlabelled, weight_error

W = np.random.default_rng(0).standard_t(4, size=(2, 16, 16)).astype(np.float32)


def data():
    x = np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)
    return unlabelled("pairs", (x, x[::-1].copy()))


def build(seed):
    return Model(
        lambda p, s, x, y: jax.nn.relu(x @ p["a"]) @ p["b"] + y, {"a": jnp.asarray(W[0]), "b": jnp.asarray(W[1])}, {}
    )


def test_errors_are_of_all_weights_together(tmp_path):
    methods = (Method("both", {"**": "w4"}), Method("one", {"b": "w4", "**": "keep"}))
    evals = (weight_error(), latency(seconds=0, rest=0))
    found = run(Experiment("errors", data, build, None, methods, seeds=(0,), evals=evals), tmp_path)
    assert found.failed == {}
    rows = {row.name: row for row in found.rows}

    def off(w):
        scale = np.abs(w).max(axis=-2, keepdims=True) / np.float32(7)
        return np.sum((scale * np.round(w / scale) - w.astype(np.float64)) ** 2)

    np.testing.assert_allclose(
        rows["both"].values("weight_error"), off(W) / np.sum(W.astype(np.float64) ** 2), rtol=1e-5
    )
    np.testing.assert_allclose(
        rows["one"].values("weight_error"), off(W[1]) / np.sum(W[1].astype(np.float64) ** 2), rtol=1e-5
    )
    assert rows["float"].values("weight_error") == []
    assert rows["one"].values("latency", "xla", "b1", "median")
