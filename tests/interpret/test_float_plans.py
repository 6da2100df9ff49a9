"""With no operation quantized, `simulate` and `execute` are ``jax.jit(fn)``: the same bits, and those of the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from tests.interpret.zoo import CASES
from tests.values import normal


def _equal(a, b):
    a, b = jax.tree.flatten(a), jax.tree.flatten(b)
    assert a[1] == b[1]
    for x, y in zip(a[0], b[0], strict=True):
        np.testing.assert_array_equal(x, y)


def _fused(p, x):
    """Products that meet sums: whether a compiler fuses them depends on what stands around."""
    y = jnp.tanh(x @ p["w"]) * p["s"] + p["b"]
    return y * y * p["s"] + jnp.sin(y) * p["b"]


NOTHING = {"learn": {}, "fixed": {}}


@pytest.mark.parametrize("rules", [{}, {"**": "keep"}], ids=["none", "keep"])
def test_products_and_sums_fuse_as_in_the_float_model(rules):
    params, x = {"w": normal(0, 64, 64), "s": normal(1, 64), "b": normal(2, 64)}, normal(3, 32, 64)
    plan = lb.bind(_fused, rules, params, x)
    qstate = lb.init(_fused, plan, params, x)
    qparams = lb.pack(plan, params, qstate)
    want = jax.jit(_fused)(params, x)
    assert not np.array_equal(want, _fused(params, x))  # else this tells nothing
    _equal(want, lb.simulate(_fused, plan)(params, qstate, x))
    for implementation in (None, "carried", "reference"):
        _equal(want, lb.execute(_fused, plan, implementation=implementation)(qparams, x))
    y, after = lb.simulate(_fused, plan, train=True)(params, qstate, x, key=jax.random.key(0), step=0)
    _equal((want, qstate), (y, after))
    loss = lambda run: jax.jit(jax.grad(lambda p: jnp.sum(jnp.cos(run(p)))))  # noqa: E731
    wanted = loss(lambda p: jax.jit(_fused)(p, x))(params)
    _equal(wanted, loss(lambda p: lb.simulate(_fused, plan)(p, qstate, x))(params))


@pytest.mark.parametrize("name", ["linen_conv_train", "attention", "scanned_remat"])
def test_models_are_themselves(name):
    case = CASES[name]()
    plan = lb.bind(case.fn, {}, case.params, *case.args)
    _equal(jax.jit(case.fn)(case.params, *case.args), lb.simulate(case.fn, plan)(case.params, NOTHING, *case.args))


def test_another_function_is_still_refused_and_nothing_is_compiled_twice():
    params, x = {"w": normal(0, 4, 4), "v": normal(1, 4, 4)}, normal(2, 3, 4)
    plan = lb.bind(lambda p, x: x @ p["w"], {}, params, x)
    with pytest.raises(ValueError, match="operations are not those of the plan"):
        lb.simulate(lambda p, x: x @ p["v"], plan)(params, NOTHING, x)
    calls = 0

    def counted(p, x):
        nonlocal calls
        calls += 1
        return x @ p["w"]

    run = lb.simulate(counted, plan)
    run(params, NOTHING, x)
    before = calls
    run(params, NOTHING, x + 1)
    assert calls == before
