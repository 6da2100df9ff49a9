"""The derivative of the packed model: one on every route, that of the products of its operands' values. The truth is float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.packed import native
from tests.values import heavy_tailed, normal

ROUTES = (None, "carried", "reference")

X, WEIGHT = normal(0, 2, 10, 8), heavy_tailed(1, 8, 6)
KERNEL, EACH = heavy_tailed(2, 3, 8, 6), heavy_tailed(3, 3, 1, 8)
HEADS = heavy_tailed(4, 2, 8, 5)


def _conv(x, w, groups=1):
    numbers = ("NWC", "WIO", "NWC")
    return lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=numbers, feature_group_count=groups)


def _taps(g, w):
    """Of a convolution of three taps with a border of one: what the gradient of its result is, seen from its input."""
    padded = np.pad(g, ((0, 0), (1, 1), (0, 0)))
    return sum(w(padded[:, 2 - k : 12 - k], k) for k in range(3))


CASES = {
    "dot": (lambda p, x: x @ p["w"], WEIGHT, lambda g, w: g @ w.T),
    "left": (lambda p, x: jnp.einsum("oi,bti->bto", p["w"].T, x), WEIGHT, lambda g, w: g @ w.T),
    "heads": (lambda p, x: jnp.einsum("bti,bio->bto", x, p["w"]), HEADS, lambda g, w: np.einsum("bto,bio->bti", g, w)),
    "cut": (lambda p, x: x @ p["w"][:, ::-1][:, :3], WEIGHT, lambda g, w: g @ w[:, ::-1][:, :3].T),
    "conv": (lambda p, x: _conv(x, p["w"]), KERNEL, lambda g, w: _taps(g, lambda g, k: g @ w[k].T)),
    "depthwise": (lambda p, x: _conv(x, p["w"], 8), EACH, lambda g, w: _taps(g, lambda g, k: g * w[k, 0])),
    "scan": (
        lambda p, x: lax.map(lambda x: x @ p["w"], x),
        WEIGHT,
        lambda g, w: g @ w.T,
    ),
}


def _served(fn, rule, p, x, *, seen=None):
    plan = lb.bind(fn, {"**": rule}, p, x)
    qstate = lb.calibrate(fn, plan, p, [(x if seen is None else seen,)])
    return plan, qstate, lb.pack(plan, p, qstate)


RULES = [("dot", rule) for rule in ("w4/tensor,a8/sym", "w4,a8/dynamic", "w4/g4,a8", "w4/g4")]
RULES += [("heads", "w4/g4,a8"), ("conv", "w4,a8/dynamic"), *((name, "w8,a8") for name in CASES)]


@pytest.mark.parametrize(("name", "rule"), RULES)
def test_to_the_input_it_is_that_of_the_product_where_nothing_clips(name, rule):
    fn, w, transposed = CASES[name]
    p = {"w": w}
    plan, qstate, qparams = _served(fn, rule, p, X, seen=X / 2)
    if native.status() is None and name != "cut":
        assert "  cpu" in lb.explain(fn, plan, qparams, X)
    steps = qparams.sites.get("w", {}).get("input", {})
    inside = np.ones(X.shape, bool)
    if "scale" in steps:
        levels = np.asarray(X, np.float64) / float(steps["scale"].reshape(())) + float(np.sum(steps.get("zero", 0)))
        inside = (levels >= -128) & (levels <= 127)
        assert 0 < inside.mean() < 1
    out = np.asarray(fn(p, X))
    g = np.asarray(normal(5, *out.shape), np.float64)
    weight = np.asarray(qparams.weights()["w"].dequantize(), np.float64)
    truth = transposed(g, weight) * inside
    for route in ROUTES:
        run = lb.execute(fn, plan, implementation=route)
        got = jax.grad(lambda x: jnp.sum(run(qparams, x) * g.astype(np.float32)))(X)  # noqa: B023
        np.testing.assert_allclose(got, truth, rtol=1e-5, atol=1e-5 * np.abs(truth).max(), err_msg=str(route))
    run = lb.simulate(fn, plan)
    got = jax.grad(lambda x: jnp.sum(run(p, qstate, x) * g.astype(np.float32)))(X)
    np.testing.assert_allclose(got, truth, rtol=1e-5, atol=1e-5 * np.abs(truth).max())


def test_of_two_computed_operands_it_reaches_both():
    def fn(p, x):
        return jnp.einsum("bti,bsi->bts", x, x) @ (x @ p["w"])

    plan, qstate, qparams = _served(fn, "w8,a8", {"w": WEIGHT}, X)
    want = jax.grad(lambda x: jnp.sum(jnp.sin(lb.simulate(fn, plan)({"w": WEIGHT}, qstate, x))))(X)
    plain = jax.grad(lambda x: jnp.sum(jnp.sin(fn({"w": WEIGHT}, x))))(X)
    assert 0.5 < float(jnp.vdot(want, plain) / jnp.vdot(plain, plain)) < 2
    for route in ROUTES:
        run = lb.execute(fn, plan, implementation=route)
        got = jax.grad(lambda x: jnp.sum(jnp.sin(run(qparams, x))))(X)  # noqa: B023
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("rule", ["w8,a8", "w4/g4,a8/dynamic", "w4/g4"])
def test_to_the_scales_of_weights_it_is_the_sum_of_levels(rule):
    """``d sum(g y) / d s = sum x^ level g`` of what a scale is shared by, in what nothing prepared."""
    plan, _, qparams = _served(CASES["dot"][0], rule, {"w": WEIGHT}, X)
    q = qparams.weights()["w"]
    levels = np.asarray(q.dequantize(), np.float64) / np.repeat(
        np.asarray(q.scale, np.float64), 8 // q.scale.shape[0], axis=0
    )
    x, row = np.asarray(X, np.float64), plan.rows[0]
    if row.is_integer:
        sites = qparams.sites["w"].get("input", {})
        most = np.abs(x).max(-1, keepdims=True).astype(np.float32) * np.float32(1 / 127)
        scale, zero = (
            (float(sites[k].reshape(())) for k in ("scale", "zero")) if sites else (most.astype(np.float64), 0)
        )
        x = (np.clip(np.round(x / scale) + zero, -128, 127) - zero) * scale
    g = np.asarray(normal(6, 2, 10, 6), np.float64)
    truth = np.einsum("bti,bto->io", x, g) * levels
    truth = truth.reshape(q.scale.shape[0], -1, 6).sum(1)
    for route in ("carried", "reference"):
        run = lb.execute(CASES["dot"][0], plan, implementation=route)
        loss = lambda q: jnp.sum(run(q, X) * g.astype(np.float32))  # noqa: B023, E731
        got = jax.grad(loss, allow_int=True)(qparams).weights()["w"].scale
        np.testing.assert_allclose(got, truth, rtol=1e-4, atol=1e-4 * np.abs(truth).max())


@pytest.mark.parametrize("route", ROUTES)
def test_of_a_full_integer_plan_it_is_refused(route):
    def fn(p, x):
        return jnp.tanh(x @ p["w"])

    p = {"w": WEIGHT}
    plan = lb.bind(fn, {"**": "w8,a8"}, p, X, integer=True)
    qparams = lb.pack(plan, p, lb.calibrate(fn, plan, p, [(X,)]))
    run = lb.execute(fn, plan, implementation=route)
    run(qparams, X)
    with pytest.raises(ValueError, match=r"full-integer plan has no derivative: differentiate lowbit\.simulate"):
        jax.grad(lambda x: jnp.sum(run(qparams, x)))(X)
    fixed = jax.grad(lambda x: jnp.sum(x * run(qparams, lax.stop_gradient(x))[..., :1]))(X)
    np.testing.assert_allclose(fixed, jnp.broadcast_to(run(qparams, X)[..., :1], X.shape))


def test_forward_mode_is_that_of_the_product_on_the_routes_that_are_the_same_everywhere():
    fn, w, _ = CASES["dot"]
    plan, _, qparams = _served(fn, "w8,a8", {"w": w}, X, seen=2 * X)
    t = normal(7, *X.shape)
    truth = np.asarray(t, np.float64) @ np.asarray(qparams.weights()["w"].dequantize(), np.float64)
    for route in ("carried", "reference"):
        run = lb.execute(fn, plan, implementation=route)
        got = jax.jvp(lambda x: run(qparams, x), (X,), (t,))[1]  # noqa: B023
        np.testing.assert_allclose(got, truth, rtol=1e-4, atol=1e-5)
