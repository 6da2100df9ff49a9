"""What is read through is walked through: a weight moved inside a call is the weight that it is outside of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.interpret.derive import derivation
from tests.values import normal

PARAMS, X = {"w": normal(0, 16, 16), "b": normal(2, 16, 16)}, normal(1, 5, 16)


@jax.custom_jvp
def _turned(w):
    return w.T


_turned.defjvp(lambda p, t: (p[0].T, 3.0 * t[0].T))


@jax.custom_vjp
def _turned_back(w):
    return w.T


_turned_back.defvjp(lambda w: (w.T, None), lambda _, g: (3.0 * g.T,))


def _used(pair):
    weight, x = pair
    return x @ weight


LEAVES = {
    "jit": lambda p, x: x @ jax.jit(lambda w: w.T)(p["w"]),
    "remat": lambda p, x: x @ jax.checkpoint(lambda w: w.T)(p["w"]),
    "flip": lambda p, x: x @ jnp.flip(p["w"], 0),
    "rot90": lambda p, x: x @ jnp.rot90(p["w"]),
    "nested": lambda p, x: x @ jax.jit(lambda w: jax.checkpoint(lambda w: jnp.flip(w, 0).T)(w)[::-1])(p["w"]),
    "with data": lambda p, x: _used(jax.jit(lambda w, x: (w.T, x * 2.0))(p["w"], x)),
    "stopped": lambda p, x: x @ lax.stop_gradient(p["w"]).T,
    "behind a barrier with data": lambda p, x: _used(lax.optimization_barrier((p["w"], x))),
    "carried by scan": lambda p, x: x @ lax.scan(lambda c, _: (c, None), p["w"], None, length=2)[0],
    "carried by while": lambda p, x: x @ lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1]), (0, p["w"]))[1],
}
DERIVED = {
    "moved by scan": lambda p, x: x @ lax.scan(lambda c, _: (c.T, None), p["w"], None, length=3)[0],
    "cond": lambda p, x: x @ lax.cond(jnp.sum(p["w"]) > 0, lambda w: w.T, lambda w: w[::-1], p["w"]),
    "custom_jvp": lambda p, x: x @ _turned(p["w"]),
    "custom_vjp": lambda p, x: x @ _turned_back(p["w"]),
    "jit with data": lambda p, x: _used(jax.jit(lambda w, x: (w.T * 2.0, x * 2.0))(p["w"], x)),
    "remat with data": lambda p, x: _used(jax.checkpoint(lambda w, x: (w.T * 2.0, x * 2.0))(p["w"], x)),
    "scan with data": lambda p, x: _used(
        lax.scan(lambda c, _: ((c[0] * 0.9, c[1] + 1.0), None), (p["w"], x), None, length=2)[0]
    ),
    "cond with data": lambda p, x: _used(
        (p["w"] * 2.0, lax.cond(jnp.sum(x) > 0, lambda w, x: (w * 2.0, x), lambda w, x: (w, x * 2.0), p["w"], x)[1])
    ),
    "powers in a loop": lambda p, x: x @ lax.fori_loop(0, 2, lambda _, c: c @ p["w"] * 0.1, jnp.eye(16)),
    "products meet sums": lambda p, x: x @ (p["w"] * p["b"] + p["b"] * 1.37),
}


@pytest.mark.parametrize("name", [*LEAVES, *DERIVED])
def test_a_weight_moved_in_a_call_is_summed_in_integers(name):
    fn = {**LEAVES, **DERIVED}[name]
    plan = lb.bind(fn, {"**": "w8,a8"}, PARAMS, X)
    assert [site.kind for site in plan.rows[0].sites] == ["input", "leaf" if name in LEAVES else "derived"]
    qstate = lb.init(fn, plan, PARAMS, X)
    run = lb.simulate(fn, plan)
    want = run(PARAMS, qstate, X)
    assert "i32[5,16]" in str(jax.make_jaxpr(run)(PARAMS, qstate, X))
    assert 0 < float(jnp.max(jnp.abs(want - fn(PARAMS, X)))) < 1.0
    qparams = lb.pack(plan, PARAMS, qstate)
    for implementation in (None, "reference"):
        np.testing.assert_array_equal(lb.execute(fn, plan, implementation=implementation)(qparams, X), want)


@pytest.mark.parametrize("name", ["custom_jvp", "custom_vjp"])
def test_a_moving_function_keeps_its_own_gradient(name):
    """Three times that of a transposition: the sum over outputs of x_i, three times, wherever no weight is clipped."""
    fn = DERIVED[name]
    plan = lb.bind(fn, {"**": "w8"}, PARAMS, X)
    qstate = lb.init(fn, plan, PARAMS, X)
    grad = jax.grad(lambda p: jnp.sum(lb.simulate(fn, plan)(p, qstate, X)))(PARAMS)["w"]
    want = np.broadcast_to(3.0 * np.asarray(X, np.float64).sum(0), (16, 16))
    is_same = np.abs(np.asarray(grad) - want) <= 1e-4
    assert is_same.sum() >= 240  # the largest weight of a channel lies on its bound, where nothing passes


@pytest.mark.parametrize("options", [{}, {"integer": True}], ids=["plain", "integer"])
def test_a_weight_whose_gradient_is_stopped_has_none(options):
    """Frozen in one of its two uses, it has the gradient of the other: the sum over outputs of x_i. Once it had both."""
    for fn, share in (
        (LEAVES["stopped"], 0.0),
        (lambda p, x: x @ jax.jit(lambda w: lax.stop_gradient(w.T))(p["w"]), 0.0),
        (lambda p, x: x @ lax.stop_gradient(p["w"]).T + x @ p["w"].T, 1.0),
    ):
        plan = lb.bind(fn, {"**": "w8,a8"}, PARAMS, X, **options)
        qstate = lb.init(fn, plan, PARAMS, X)
        run = lb.simulate(fn, plan)
        grad = np.asarray(jax.grad(lambda p, run=run, qstate=qstate: jnp.sum(run(p, qstate, X)))(PARAMS)["w"])
        want = share * np.asarray(X, np.float64).sum(0)
        # The gradient sees X in 8 bits: up to half a step for every row.
        is_same = np.abs(grad - want) <= 0.02 * max(np.abs(want).max(), 1e-30)
        assert is_same.all() if share == 0.0 else is_same.sum() >= 200


def test_a_weight_used_as_it_is_and_in_arithmetic_is_served_as_simulated():
    fn = lambda p, x: x @ p["w"] + x @ (p["w"] * 1.7 + 0.3 * jnp.abs(p["w"]))  # noqa: E731
    plan = lb.bind(fn, {"**": "w4,a8"}, PARAMS, X)
    assert [row.sites[1].kind for row in plan.rows] == ["leaf", "derived"]
    qstate = lb.init(fn, plan, PARAMS, X)
    want, qparams = lb.simulate(fn, plan)(PARAMS, qstate, X), lb.pack(plan, PARAMS, qstate)
    for implementation in (None, "reference"):
        np.testing.assert_array_equal(lb.execute(fn, plan, implementation=implementation)(qparams, X), want)


def test_a_derived_weight_is_computed_as_simulation_does_it():
    """Every product and every sum rounded once, in numpy: a fused multiply-add would round some of them otherwise."""
    fn = DERIVED["products meet sums"]
    plan = lb.bind(fn, {"**": "w8,a8"}, PARAMS, X)
    (got,) = derivation(plan.program, plan.rows)(PARAMS).values()
    w, b = (np.asarray(PARAMS[k]) for k in "wb")
    np.testing.assert_array_equal(got, w * b + b * np.float32(1.37))
