"""Statistics of weights whose layers stand in one leaf, and are taken by an index: against sums written out in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowbit as lb
from lowbit.core.moments import ChannelMax, Gram
from tests.values import normal

PARAMS = {"w": normal(0, 3, 6, 6) / 3}
X = normal(1, 8, 6)


def by_constants(params, x):
    """Two layers, the third before the first; the second is taken by nothing."""
    return jnp.tanh(x @ params["w"][2]) @ params["w"][0]


def by_a_loop(params, x):
    return lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ params["w"][i]), x)


def parts(params, x):
    """Of every matrix a part of the rows meets a part of the inputs, so that nothing says what a whole row meets."""
    return sum(x[:, i : i + 3] @ params["w"][i % 2, i : i + 3] for i in (0, 3))


def moments(fn):
    plan = lb.bind(fn, {"**": "w4"}, PARAMS, X)
    seen = lb.observe(fn, plan, PARAMS, [(X,), (2 * X,)], {"**": {"input": (Gram(), ChannelMax())}})
    return seen["w"]["input"]


def by_a_scan(params, x):
    """Over the last two of the layers."""
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["w"][1:])[0]


def layers():
    """The inputs of the layers of `by_constants`, in the order of the leaf."""
    both = np.concatenate([np.asarray(X, np.float64), 2 * np.asarray(X, np.float64)])
    after = np.tanh(both @ np.asarray(PARAMS["w"][2], np.float64))
    return after, np.zeros_like(both), both


def test_a_layer_that_a_constant_index_takes_has_the_moment_of_its_own_inputs():
    seen = moments(by_constants)
    for i, rows in enumerate(layers()):
        np.testing.assert_allclose(seen["gram"][i, 0], rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(seen["channel_max"][i, 0], np.abs(rows).max(axis=0), rtol=1e-6)


def test_a_scan_over_a_part_of_the_layers_has_their_moments():
    both = np.concatenate([np.asarray(X, np.float64), 2 * np.asarray(X, np.float64)])
    after = np.tanh(both @ np.asarray(PARAMS["w"][1], np.float64))
    for got, rows in zip(moments(by_a_scan)["gram"], (np.zeros_like(both), both, after), strict=True):
        np.testing.assert_allclose(got[0], rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)


def test_layers_that_data_picks_share_the_moment_of_all_turns():
    rows = [np.concatenate([np.asarray(X, np.float64), 2 * np.asarray(X, np.float64)])]
    for i in range(2):
        rows.append(np.tanh(rows[-1] @ np.asarray(PARAMS["w"][i], np.float64)))
    want = np.concatenate(rows)
    for got in moments(by_a_loop)["gram"]:
        np.testing.assert_allclose(got[0], want.T @ want / len(want), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fn", [by_constants, by_a_loop])
def test_every_layer_is_solved_for_its_inputs(fn):
    """GPTQ lowers the error of results below that of rounding to nearest, in float64."""
    batches = [(X,), (2 * X,), (-X[::-1],)]
    want, errors = np.asarray(fn(PARAMS, X), np.float64), {}
    for recipe in ("rtn", "gptq"):
        qparams, plan, _ = lb.quantize(fn, PARAMS, {"**": "w3"}, batches=batches, recipe=recipe)
        errors[recipe] = np.square(np.asarray(lb.execute(fn, plan)(qparams, X), np.float64) - want).sum()
    assert errors["gptq"] < 0.9 * errors["rtn"]


@pytest.mark.parametrize("recipe", ["gptq", "auto", "qronos", "guided"])
def test_a_weight_whose_parts_meet_parts_of_inputs_is_rounded_to_nearest_and_said_to_be(recipe):
    _, _, report = lb.quantize(parts, PARAMS, {"**": "w4"}, batches=[(X,)], recipe=recipe)
    assert "nothing says which inputs meet which weights" in str(report)
