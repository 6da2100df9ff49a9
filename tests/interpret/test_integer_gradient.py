"""The gradient of full-integer plans against central differences of the float function, written in numpy's float64.

A grid of 8 bits moves what a derivative is taken at by some half steps of 1/255 of a range: per cents of a gradient, not halves.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from tests.values import normal

P = {"w": normal(1, 8, 8), "v": normal(2, 8, 8)}
X, G = normal(5, 24, 8), normal(9, 24, 8)


def _exp(x):
    return np.exp(x - x.max(-1, keepdims=True))


def _log_softmax(x):
    return x - x.max(-1, keepdims=True) - np.log(_exp(x).sum(-1, keepdims=True))


def _norm(x):
    c = x - x.mean(-1, keepdims=True)
    return c / np.sqrt((c * c).mean(-1, keepdims=True) + 1e-5)


def _jax_norm(x):
    c = x - x.mean(-1, keepdims=True)
    return c * jax.lax.rsqrt((c * c).mean(-1, keepdims=True) + 1e-5)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


FUNCTIONS = {  # in jax and in numpy, of x @ w and x @ v
    "log_softmax": (lambda a, _: jax.nn.log_softmax(a), lambda a, _: _log_softmax(a)),
    "logsumexp": (
        lambda a, b: b - jax.nn.logsumexp(a, axis=-1, keepdims=True),
        lambda a, b: b + _log_softmax(a) - a,
    ),
    "softmax": (lambda a, _: 4 * jax.nn.softmax(a), lambda a, _: 4 * _exp(a) / _exp(a).sum(-1, keepdims=True)),
    "norm": (lambda a, _: _jax_norm(a), lambda a, _: _norm(a)),
    "silu": (lambda a, _: jax.nn.silu(a), lambda a, _: a * _sigmoid(a)),
    "sigmoid": (lambda a, b: b * jax.nn.sigmoid(a), lambda a, b: b * _sigmoid(a)),
    "relu6": (lambda a, b: jax.nn.relu6(a) - b, lambda a, b: np.clip(a, 0, 6) - b),
    "mean": (lambda a, b: b + a.mean(-1, keepdims=True), lambda a, b: b + a.mean(-1, keepdims=True)),
    "concatenate": (
        lambda a, b: jnp.concatenate([a[:, :4], b[:, 4:]], -1),
        lambda a, b: np.concatenate([a[:, :4], b[:, 4:]], -1),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_gradient_is_that_of_the_function(name):
    """What rounding puts up to half a step beyond a range is not clipped: log_softmax was half of its gradient off."""
    in_jax, in_numpy = FUNCTIONS[name]

    def fn(p, x):
        return in_jax(x @ p["w"], x @ p["v"])

    def truth(x):
        return np.sum(np.asarray(G, np.float64) * in_numpy(*(x @ np.asarray(P[k], np.float64) for k in "wv")))

    plan = lb.bind(fn, {"**": "w8,a8"}, P, X, integer=True)
    qstate = lb.calibrate(fn, plan, P, [(0.9 * X,), (1.1 * X,)])  # no range is too narrow for sums of what is rounded
    got = np.asarray(jax.grad(lambda x: jnp.sum(G * lb.simulate(fn, plan)(P, qstate, x)))(X))
    x, want = np.asarray(X, np.float64), np.zeros(X.shape)
    for at in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[at] = 1e-5
        want[at] = (truth(x + step) - truth(x - step)) / 2e-5
    assert np.linalg.norm(got - want) < 0.03 * np.linalg.norm(want)


@pytest.mark.parametrize(("quantizer", "passes"), [(lb.rtn, [1, 1, 1, 0, 0]), (lb.lsq, [1, 0, 0, 0, 0])])
def test_what_lies_further_beyond_a_range_is_clipped_and_learned_steps_keep_their_rule(quantizer, passes):
    """Steps of one, the last of them 127: up to half a step beyond, TensorFlow's rule passes and LSQ's does not."""

    def fn(p, x):
        return x @ p["w"]

    params, x = {"w": jnp.eye(1)}, jnp.array([[125.6], [127.2], [127.4], [127.6], [300.0]])
    plan = lb.bind(fn, {"**": quantizer("w8,a8/sym")}, params, x, integer=True)
    qstate = lb.init(fn, plan, params, jnp.full((1, 1), 127.0))
    qstate = jax.tree.map(lambda s: jnp.ones_like(s) if s.size == 1 and s.dtype == jnp.float32 else s, qstate)
    got = jax.grad(lambda x: jnp.sum(lb.simulate(fn, plan)(params, qstate, x)))(x)
    assert got.ravel().tolist() == passes
