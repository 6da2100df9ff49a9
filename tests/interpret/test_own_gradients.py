"""Functions with a gradient of their own keep it in full-integer plans: of weights, and of data between two grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from tests.values import heavy_tailed, normal


@jax.custom_jvp
def tripled(x):
    return x * 1.0


tripled.defjvps(lambda t, _, x: 3.0 * t)


@jax.custom_vjp
def doubled(x):
    return x * 1.0


doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (2.0 * g,))


W, X = heavy_tailed(0, 6, 4), normal(1, 5, 6)

CASES = {
    "weight": (lambda own: lambda p, x: x @ own(p["w"]), 0),
    "weight in a jit": (lambda own: lambda p, x: x @ jax.jit(own)(p["w"] * 0.5), 0),
    "layers": (lambda own: lambda p, x: lax.scan(lambda x, w: (x @ own(w @ w.T), None), x, jnp.stack([p["w"]] * 2))[0], 0),
    "data": (lambda own: lambda p, x: own(x) @ p["w"], 1),
    "data in a jit": (lambda own: lambda p, x: jax.jit(own)(jnp.sin(x)) @ p["w"], 1),
    "result": (lambda own: lambda p, x: own(x @ p["w"]), 1),
}  # fmt: skip


def _gradient(fn, p, x, **options):
    plan = lb.bind(fn, {"**": "w8,a8"}, p, x, integer=True)
    qstate = lb.calibrate(fn, plan, p, [(x,)])
    run = lb.simulate(fn, plan, **options)
    return jax.grad(lambda p, x: jnp.sum(run(p, qstate, x)), (0, 1))(p, x)


@pytest.mark.parametrize("name", CASES)
def test_it_is_a_factor_of_the_gradient_of_the_body(name):
    """The functions are the identity with a factor in the gradient: three times, to the last bit, that of the identity."""
    made, which = CASES[name]
    plain = _gradient(made(lambda x: x * 1.0), {"w": W}, X)
    own = _gradient(made(tripled), {"w": W}, X)
    want, got = (jax.tree.leaves(g[which])[0] for g in (plain, own))
    assert float(jnp.abs(want).max()) > 0
    np.testing.assert_allclose(got, 3.0 * want, rtol=1e-5)


def test_of_a_weight_a_custom_vjp_is_kept_too():
    plain = _gradient(CASES["weight"][0](lambda w: w * 1.0), {"w": W}, X)[0]["w"]
    np.testing.assert_allclose(_gradient(CASES["weight"][0](doubled), {"w": W}, X)[0]["w"], 2.0 * plain, rtol=1e-6)


def test_one_that_a_grid_cuts_in_two_is_refused_when_differentiated():
    @jax.custom_jvp
    def attended(x, y):
        return (x @ y) @ jnp.ones((6, 4))

    attended.defjvps(lambda t, _, x, y: t[:, :4], None)

    def fn(p, x):
        return jnp.sin(x) @ p["w"] + attended(x, x.T @ x)

    plan = lb.bind(fn, {"**": "w8,a8"}, {"w": W}, X, integer=True)
    qstate = lb.calibrate(fn, plan, {"w": W}, [(X,)])
    lb.simulate(fn, plan)({"w": W}, qstate, X)
    with pytest.raises(ValueError, match="lies inside a function with its own gradient"):
        _gradient(fn, {"w": W}, X)
    found = _gradient(fn, {"w": W}, X, custom_vjp="body")
    assert float(jnp.abs(found[1]).max()) > 0
