"""`hqq` beside its equations in float64: the norm never rises, is no worse than nearest, and zero points are those of the splitting."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.recipes.hqq import HalfQuadratic
from lowbit.recipes.lookup import named

P = 0.7


@pytest.fixture(scope="module")
def weight():
    return (np.random.default_rng(0).standard_t(4, size=(96, 40)) + 0.3).astype(np.float32)


def packed(weight, rule, recipe):
    x = jnp.ones((4, len(weight)), jnp.float32)  # whatever they are: `hqq` looks at no inputs
    return lb.quantize(lambda p, x: x @ p["w"], {"w": weight}, {"**": rule}, batches=[(x,)], recipe=recipe)[
        0
    ].weights()["w"]


def norms(weight, found, group, p=P):
    """``|W - Q|_p^p`` of every group."""
    off = np.abs(np.asarray(found.dequantize(), np.float64) - weight)
    return np.sum((off**p).reshape(-1, group, weight.shape[1]), axis=1)


@pytest.mark.parametrize(("rule", "group"), [("w3", 96), ("w2/g32/affine", 32), ("w4/g32", 32), ("wnf4/g48", 48)])
def test_the_norm_never_rises_and_is_no_worse_than_nearest(weight, rule, group):
    last = norms(weight, packed(weight, rule, "rtn"), group)
    first = last.sum()
    for iterations in (0, 1, 20):
        recipe = dataclasses.replace(named("hqq"), solver=HalfQuadratic(iterations=iterations))
        now = norms(weight, packed(weight, rule, recipe), group)
        assert np.all(now <= last * (1 + 1e-5))  # sums of up to 96 roots in float32
        last = now
    assert last.sum() < 0.99 * first


def test_zero_points_and_scales_are_those_of_the_splitting_written_out(weight):
    """One iteration in float64 from the grid of the range: the start that is kept where it was the best multiple."""
    found, own = (packed(weight, "w3/affine", recipe) for recipe in (
        dataclasses.replace(named("hqq"), solver=HalfQuadratic(iterations=1, steps=2)), "rtn"))  # fmt: skip
    w, s, z = weight.astype(np.float64), np.asarray(own.scale_values, np.float64), np.asarray(own.zero, np.float64)
    low, high = own.spec.format.low, own.spec.format.high

    def levels(s, z):
        return np.clip(np.rint(w / s), low - z, high - z) + z

    def norm(s, z, p):
        return np.sum(np.abs(w - s * (levels(s, z) - z)) ** p, axis=0)

    tried = [s, 0.4 * s, 1.1 * s]
    best = np.argmin([norm(each, z, 2) for each in tried], axis=0)
    start = np.choose(best, tried)
    q = levels(start, z)
    off = w / start - (q - z)
    forgiven = np.sign(off) * np.maximum(np.abs(off) - np.maximum(np.abs(off), 1e-9) ** (P - 1) / 10.0, 0)
    aim = w / start - forgiven
    zero = np.clip(np.rint(np.mean(q - aim, axis=0)), low, high)
    scale = np.sum(start * aim * (q - zero), axis=0) / np.sum((q - zero) ** 2, axis=0)
    grids = [(s, z), (start, z), (scale[None], zero[None])]
    kept = np.argmin([norm(step, point, P) for step, point in grids], axis=0)
    assert (kept == 2).mean() > 0.3  # the splitting is looked at, not the start alone
    np.testing.assert_array_equal(
        np.asarray(found.zero, np.float64)[0], np.choose(kept, [grid[1][0] for grid in grids])
    )
    np.testing.assert_allclose(found.scale_values[0], np.choose(kept, [grid[0][0] for grid in grids]), rtol=1e-5)


def test_an_outlier_is_forgiven():
    """Of 64 weights one is forty times the others: those others are rounded more finely than to nearest on the full range."""
    w = np.random.default_rng(1).normal(size=(64, 16)).astype(np.float32)
    w[7] = 40.0
    rest = np.arange(64) != 7
    lost = {}
    for name in ("rtn", "hqq"):
        off = np.asarray(packed(w, "w3/affine", name).dequantize(), np.float64) - w
        lost[name] = np.sum(np.abs(off[rest]) ** P)
    assert lost["hqq"] < lost["rtn"]


@pytest.mark.parametrize("wrong", [{"p": 0.0}, {"p": 1.5}, {"b": 0.0}, {"kappa": 0.9}, {"iterations": -1}])
def test_bad_hyper_parameters_are_named(wrong):
    with pytest.raises(ValueError, match=r"HalfQuadratic needs 0 < p <= 1"):
        HalfQuadratic(**wrong)
