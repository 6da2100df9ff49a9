"""Calibration that says little, in every recipe that is found: an error that names the operation, or a line in the report; never silence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.recipes.lookup import named, names

RECIPES = names()
RNG = np.random.default_rng(0)
SIZE, EXPERTS = 24, 3
PARAMS = {
    name: jnp.asarray(RNG.standard_t(4, size=shape), jnp.float32)
    for name, shape in {"first": (SIZE, 16), "experts": (EXPERTS, 16, 8), "other": (16, 8)}.items()
}
X = jnp.asarray(RNG.normal(size=(64, SIZE)), jnp.float32)


def routed(params, x):
    """Every row goes to one of the first two experts; the last one never sees any."""
    y = jax.nn.relu(x @ params["first"])
    gate = jax.nn.one_hot((x[:, 0] > 0).astype(jnp.int32), EXPERTS)
    return jnp.sum(jnp.einsum("enk,ekm->enm", gate.T[:, :, None] * y, params["experts"]), axis=0)


def branched(params, x):
    y = jax.nn.relu(x @ params["first"])
    return jax.lax.cond(jnp.sum(x * x) < 0, lambda: y @ params["other"], lambda: y[:, :8])


def untouched():
    before = jax.tree.map(np.asarray, PARAMS)
    return lambda: jax.tree.map(np.testing.assert_array_equal, before, PARAMS)


@pytest.mark.parametrize("name", RECIPES)
def test_fewer_tokens_than_inputs_a_dead_input_and_an_expert_without_tokens(name):
    """Five rows for 24 inputs, one of them dead: what rounding could not know is said, and results are finite on other rows."""
    check = untouched()
    few = X[:5].at[:, 3].set(0.0)
    params = {name: PARAMS[name] for name in ("first", "experts")}
    qparams, plan, report = lb.quantize(routed, params, {"**": "w3"}, batches=[(few,)], recipe=name)
    got, want = (np.asarray(f, np.float64) for f in (lb.execute(report.fn, plan)(qparams, X), routed(params, X)))
    assert np.isfinite(got).all()
    assert np.sum((got - want) ** 2) < np.sum(want**2)
    check()
    if named(name).solver.needs_moment:
        notes = {line.path: " ".join(line.notes) for line in report.lines}
        assert "span few directions" in notes["first"]
        assert "1 of 3 matrices saw no input" in notes["experts"]


@pytest.mark.parametrize("name", RECIPES)
def test_one_sample(name):
    check = untouched()
    params = {"first": PARAMS["first"], "other": PARAMS["other"]}
    fn = lambda p, x: jax.nn.relu(x @ p["first"]) @ p["other"]  # noqa: E731
    qparams, plan, report = lb.quantize(fn, params, {"**": "w4,a8"}, batches=[(X[:1],)], recipe=name)
    got = np.asarray(lb.execute(report.fn, plan)(qparams, X[:1]), np.float64)
    want = np.asarray(fn(params, X[:1]), np.float64)
    assert np.sum((got - want) ** 2) < 0.1 * np.sum(want**2)
    check()


@pytest.mark.parametrize("name", [name for name in RECIPES if named(name).solver.needs_moment and not named(name).pick])
def test_a_moment_that_is_not_positive_definite_is_an_error_that_says_what_to_do(name):
    check = untouched()
    recipe = named(name)
    bare = lambda r: dataclasses.replace(r, solver=dataclasses.replace(r.solver, damping=0.0))  # noqa: E731
    recipe = dataclasses.replace(bare(recipe), rival=recipe.rival and bare(recipe.rival))
    with pytest.raises(
        ValueError,
        match=r"first: .* not positive definite with a damping of 0: give more calibration samples, or a larger",
    ):
        lb.quantize(
            lambda p, x: x @ p["first"], {"first": PARAMS["first"]}, {"**": "w3"}, batches=[(X[:5],)], recipe=recipe
        )
    check()


@pytest.mark.filterwarnings("ignore:.*(held nothing|had a value)")  # the error or the report says more
@pytest.mark.parametrize("name", RECIPES)
def test_a_branch_that_is_never_taken_is_named(name):
    check = untouched()
    params = {"first": PARAMS["first"], "other": PARAMS["other"]}
    try:
        _, _, report = lb.quantize(branched, params, {"**": "w4"}, batches=[(X,)], recipe=name)
    except ValueError as error:
        assert "other" in str(error)  # noqa: PT017 (either of two outcomes)
    else:
        notes = {line.path: " ".join(line.notes) for line in report.lines}
        assert "no input" in notes["other"] or not named(name).solver.needs_moment
    check()


@pytest.mark.parametrize("name", [name for name in RECIPES if named(name).rewrite is not None])
def test_where_no_rewrite_fits_the_report_says_so(name):
    def fn(params, x):  # no matrix product and no pair of weights
        return jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    params = {"kernel": jnp.asarray(RNG.normal(size=(3, 3, 4, 8)), jnp.float32)}
    x = jnp.asarray(RNG.normal(size=(4, 6, 6, 4)), jnp.float32)
    _, _, report = lb.quantize(fn, params, {"**": "w4"}, batches=[(x,)], recipe=name)
    assert "kernel: left as it is" in str(report)
    assert "kernel: left as it is" in report.to_json()
