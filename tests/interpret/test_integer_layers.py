"""Scans over layers in full-integer plans: every layer has grids of its own, and the numbers are those of the written-out loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from tests.values import normal

LAYERS = 3
PARAMS = {
    "layers": {"w": normal(0, LAYERS, 8, 8), "b": 0.1 * normal(1, LAYERS, 8), "gain": 1 + 0.1 * normal(2, LAYERS, 8)},
    "head": normal(3, 8, 4),
}
X = normal(4, 5, 8)


def _layer(x, p):
    centered = x - x.mean(-1, keepdims=True)
    normed = centered * lax.rsqrt(jnp.mean(centered**2, -1, keepdims=True) + 1e-5) * p["gain"]
    return x + jax.nn.gelu(normed @ p["w"] + p["b"])


def _written_out(p, x):
    for i in range(LAYERS):
        x = _layer(x, jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"]))
    return x @ p["head"]


SPELLINGS = {
    "scan": lambda p, x: lax.scan(lambda x, q: (_layer(x, q), None), x, p["layers"])[0] @ p["head"],
    "scan of remat under jit": lambda p, x: (
        jax.jit(lambda p, x: lax.scan(jax.checkpoint(lambda x, q: (_layer(x, q), None)), x, p))(p["layers"], x)[0]
        @ p["head"]
    ),
    "fori_loop": lambda p, x: (
        lax.fori_loop(0, LAYERS, lambda i, x: _layer(x, jax.tree.map(lambda leaf: leaf[i], p["layers"])), x) @ p["head"]
    ),
}


def _served(fn, params):
    plan = lb.bind(fn, {"**": "w8,a8"}, params, X, integer=True)
    qstate = lb.init(fn, plan, params, X)
    qparams = lb.pack(plan, params, qstate)
    simulated = lb.simulate(fn, plan)(params, qstate, X)
    np.testing.assert_array_equal(simulated, lb.execute(fn, plan)(qparams, X))
    return np.asarray(simulated), plan, qparams


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_scan_over_layers_is_the_written_out_loop(name):
    want, by_hand, packed = _served(_written_out, PARAMS)
    got, plan, qparams = _served(SPELLINGS[name], PARAMS)
    np.testing.assert_array_equal(got, want)
    assert (
        [row.path for row in plan]
        == [row.path for row in by_hand]
        == ["layers/w@0", "layers/w@1", "layers/w@2", "head"]
    )
    assert len(plan.grids()) == len(by_hand.grids())
    assert lb.nbytes(qparams) == lb.nbytes(packed)
    assert qparams.params["layers"]["w"].scale.shape == (LAYERS, 1, 8)
    assert all("test_integer_layers.py:" in row.source for row in plan)


def test_a_reversed_scan_and_what_it_stacks():
    def fn(p, x):
        last, every = lax.scan(lambda x, w: (jnp.tanh(x @ w), x[0]), x, p["w"], reverse=True)
        return last, every @ p["head"]

    def written_out(p, x):
        every = []
        for i in reversed(range(LAYERS)):
            every.append(x[0])
            x = jnp.tanh(x @ p["w"][i])
        return x, jnp.stack(every[::-1]) @ p["head"]

    params = {"w": PARAMS["layers"]["w"], "head": PARAMS["head"]}
    results = []
    for each in (fn, written_out):
        plan = lb.bind(each, {"**": "w8,a8"}, params, X, integer=True)
        results.append(lb.simulate(each, plan)(params, lb.init(each, plan, params, X), X))
    for got, want in zip(*results, strict=True):
        np.testing.assert_array_equal(got, want)
