"""The training switch: a warning where the serving form of a quantizer that trains otherwise is differentiated."""

import warnings

import jax
import jax.numpy as jnp
import pytest

import lowbit as lb
from lowbit.learn.schedule import delayed
from lowbit.quantizers.noise import noise
from lowbit.quantizers.twn import twn
from tests.values import normal


def fn(p, x):
    return {"y": x @ p["w"], "count": jnp.int32(3)}


PARAMS, X = {"w": normal(0, 8, 4)}, normal(1, 2, 8)


def simulated(rule, **kwargs):
    plan = lb.bind(fn, {"**": rule}, PARAMS, X)
    qstate = lb.init(fn, plan, PARAMS, X)
    return lambda p, **more: lb.simulate(fn, plan, **kwargs)(p, qstate, X, **more)


@pytest.mark.parametrize(
    "rule", [noise("w4"), twn("wternary"), delayed(lb.lsq("w4,a4"), 5)], ids=["train", "update", "delay"]
)
def test_differentiating_the_serving_form_warns(rule):
    """Where `train` or `update` differ, and only when differentiated; a second call is traced already."""
    run = simulated(rule)
    run(PARAMS)  # no warning: warnings are errors here
    gradient = jax.jit(jax.grad(lambda p: run(p)["y"].sum()))
    with pytest.warns(
        UserWarning, match=r"without train=True, but the (weight|input) of 'w' .*simulate\(fn, plan, train=True\)"
    ) as seen:
        gradient(PARAMS)
    assert len(seen) == 1
    gradient(PARAMS)


def test_forward_mode_warns_too():
    run = simulated(noise("w4", rate=0.5))
    with pytest.warns(UserWarning, match="without train=True"):
        jax.jvp(lambda p: run(p)["y"], (PARAMS,), (PARAMS,))


@pytest.mark.parametrize("rule", [lb.lsq("w4,a4"), "w8,a8"], ids=str)
def test_quantizers_that_train_as_they_serve_are_silent(rule):
    run = simulated(rule)
    jax.grad(lambda p: run(p)["y"].sum())(PARAMS)


def test_the_switch_is_silent():
    run = simulated(noise("w4"), train=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.grad(lambda p: run(p, key=jax.random.key(0), step=0)[0]["y"].sum())(PARAMS)
