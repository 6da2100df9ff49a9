"""The walk changes nothing: value and gradient, for every model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.interpret.identity import identity
from lowbit.interpret.trace import trace
from tests.interpret.zoo import CASES


def _loss(fn):
    def loss(params, *args):
        out = [x for x in jax.tree.leaves(fn(params, *args)) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.sum(jnp.sin(x.astype(jnp.float32))) for x in out)

    return loss


def _equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("name", CASES)
def test_walk_is_the_identity(name):
    case = CASES[name]()
    _equal(jax.jit(case.fn)(case.params, *case.args), jax.jit(identity(case.fn))(case.params, *case.args))
    want = jax.jit(jax.grad(_loss(case.fn)))(case.params, *case.args)
    _equal(want, jax.jit(jax.grad(_loss(identity(case.fn))))(case.params, *case.args))


@pytest.mark.parametrize("name", CASES)
def test_empty_plan_is_the_identity(name):
    case = CASES[name]()
    plan = lb.bind(case.fn, {}, case.params, *case.args)
    assert len(plan) == case.operations
    qstate = lb.init(case.fn, plan, case.params, *case.args)
    run = lb.simulate(case.fn, plan)
    _equal(jax.jit(case.fn)(case.params, *case.args), run(case.params, qstate, *case.args))
    want = jax.jit(jax.grad(_loss(case.fn)))(case.params, *case.args)
    _equal(
        want, jax.jit(jax.grad(lambda p, *a: _loss(lambda p, *a: run(p, qstate, *a))(p, *a)))(case.params, *case.args)
    )


@pytest.mark.parametrize("name", CASES)
def test_operations_are_all_found(name):
    case = CASES[name]()
    assert len(trace(case.fn, case.params, case.args, {}).inventory.operations) == case.operations
