"""Attention on the native kernels: the bits of `reference`, and NaN where the float product has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb

TOKENS, HEADS, WIDTH = 10, 3, 8


def attention(p, x):
    q, k, v = ((x @ p[n]).reshape(*x.shape[:2], HEADS, WIDTH) for n in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ p["o"]


@pytest.fixture(scope="module", params=["w8,a8", "w4,a8/dynamic", "w8,auint8", "w8,a4"])
def served(request):
    rng = np.random.default_rng(0)
    width = HEADS * WIDTH
    params = {n: jnp.asarray(rng.standard_normal((width, width)) / np.sqrt(width), jnp.float32) for n in "qkvo"}
    x = jnp.asarray(rng.standard_t(3, (2, TOKENS, width)), jnp.float32)
    plan = lb.bind(attention, {"**": request.param}, params, x)
    return plan, lb.pack(plan, params, lb.init(attention, plan, params, x)), x


def test_products_of_activations_run_on_the_native_kernels(served):
    plan, qparams, x = served
    lines = lb.explain(attention, plan, qparams, x).splitlines()
    assert len(lines) == 6
    assert all(line.split()[1] == "cpu" for line in lines), lines


def test_they_have_the_bits_of_the_reference(served):
    plan, qparams, x = served
    want = lb.execute(attention, plan, implementation="reference")(qparams, x)
    np.testing.assert_array_equal(lb.execute(attention, plan)(qparams, x), want)
    many = jnp.stack([x, 2 * x])
    want = jax.vmap(lambda x: lb.execute(attention, plan, implementation="reference")(qparams, x))(many)
    np.testing.assert_array_equal(jax.vmap(lambda x: lb.execute(attention, plan)(qparams, x))(many), want)


def test_what_attends_to_a_nan_is_nan(served):
    plan, qparams, x = served
    got = lb.execute(attention, plan)(qparams, x.at[0, 1, 2].set(jnp.nan))
    assert np.isnan(got[0]).all()  # every token attends to it
    np.testing.assert_array_equal(got[1], lb.execute(attention, plan)(qparams, x)[1])


def test_a_loss_behind_them_has_a_gradient(served):
    plan, qparams, x = served
    run = lb.execute(attention, plan)
    found = jax.grad(lambda x: jnp.sum(jnp.square(run(qparams, x))))(x)
    assert np.isfinite(found).all()
    assert np.any(found != 0)
