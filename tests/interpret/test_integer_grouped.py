"""Weights with a scale per group, and with zero points, in full-integer dots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from tests.values import normal

P = {"w": normal(0, 22, 6) * (1 + jnp.arange(22.0))[:, None], "b": normal(1, 6), "v": normal(2, 6, 6)}
X = normal(3, 3, 5, 22)


def _fn(p, x):
    return jax.nn.relu(jnp.einsum("btk,kn->btn", x, p["w"]) + p["b"]) @ p["v"]


def _error(got, want):
    return float(jnp.max(jnp.abs(got - want)) / jnp.max(jnp.abs(want)))


@pytest.mark.parametrize(
    ("rule", "rounding"), [("w4/g8", "exact"), ("w8/g4/affine", "tflite_single"), ("w4/affine", "gemmlowp_double")]
)
def test_the_grid_of_the_weights_is_kept(rule, rounding):
    """22 elements in groups of 8: the last one is short. Against the float model of the same weights, inputs in 8 bits."""
    plain = lb.bind(_fn, {"**": rule}, P, X)
    weights_only = lb.simulate(_fn, plain)(P, lb.init(_fn, plain, P, X), X)
    plan = lb.bind(_fn, {"**": f"{rule},a8"}, P, X, integer=True, rounding=rounding)
    qstate = lb.init(_fn, plan, P, 1.1 * X)
    qparams = lb.pack(plan, P, qstate)
    got = lb.simulate(_fn, plan)(P, qstate, X)
    for implementation in (None, "reference"):
        np.testing.assert_array_equal(got, lb.execute(_fn, plan, implementation=implementation)(qparams, X))
    assert _error(got, weights_only) < 0.02
    floats = [x for x in jax.tree.leaves(qparams.params) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert sum(x.size for x in floats) == sum(q.scale_values.size for q in qparams.weights().values()) + sum(
        q.zero.size
        for q in qparams.weights().values()
        if q.zero is not None and jnp.issubdtype(q.zero.dtype, jnp.floating)
    )


def test_transposed_and_batched_weights():
    params = {"w": normal(4, 2, 6, 22), "v": normal(5, 6, 6)}

    def fn(p, x):
        return jnp.einsum("btk,bnk->btn", x[:2], p["w"]) @ p["v"].T

    plan = lb.bind(fn, {"**": "w8/g4,a8"}, params, X, integer=True)
    qstate = lb.init(fn, plan, params, 1.1 * X)
    got = lb.simulate(fn, plan)(params, qstate, X)
    served = lb.execute(fn, plan, implementation="reference")(lb.pack(plan, params, qstate), X)
    np.testing.assert_array_equal(got, served)
    assert _error(got, fn(params, X)) < 0.02


@pytest.mark.parametrize(
    ("fn", "rule", "words"),
    [
        (lambda p, x: jnp.einsum("kn,btk->nbt", p["w"], x), "w8/g4,a8", "on the right of a dot"),
        (
            lambda p, x: jnp.einsum("kn,btk->nbt", p["w"], x),
            "w8/affine,a8",
            "on the right of a dot may have zero points",
        ),
        (lambda p, x: x @ p["w"], "w8/g4,aint16", "only a dot with 8-bit inputs"),
        (lambda p, x: jnp.concatenate([x] * 300, -1) @ p["long"], "w8/g2,a8", "leave 10 bits to their scales"),
    ],
)
def test_what_has_no_groups_is_refused(fn, rule, words):
    params = {**P, "long": jax.ShapeDtypeStruct((6600, 2), jnp.float32)}
    with pytest.raises(ValueError, match=words):
        lb.bind(fn, {"**": rule}, params, X, integer=True)
