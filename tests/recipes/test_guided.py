"""Guided GPTQ: the moment by its equation in float64, groups solved apart, and what true sensitivities are worth."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.core.moments import GuidedGram
from lowbit.recipes.guided import Guided, signed
from lowbit.recipes.recipe import Recipe

RNG = np.random.default_rng(0)
SIZE, HIDDEN, OUT = 24, 16, 6
X = (RNG.normal(size=(192, SIZE)) @ (RNG.normal(size=(SIZE, SIZE)) * np.geomspace(1, 0.05, SIZE))).astype(np.float32)
X *= np.exp(RNG.normal(size=(192, 1))).astype(
    np.float32
)  # rows of many sizes: most of the large ones end in flat parts
PARAMS = {
    "first": jnp.asarray(RNG.standard_t(4, size=(SIZE, HIDDEN)), jnp.float32),
    "second": jnp.asarray(RNG.standard_t(4, size=(HIDDEN, OUT)) * np.geomspace(4, 0.1, HIDDEN)[:, None], jnp.float32),
}


def network(params, x):
    return jnp.tanh(0.3 * (x @ params["first"])) @ params["second"]


def slopes(x):
    """Gradients of the signed results by what the first product makes, in float64."""
    sign = np.asarray(
        jax.random.rademacher(jax.random.fold_in(jax.random.key(0), 0), (len(x), OUT), jnp.float32), np.float64
    )
    w, v = (np.asarray(PARAMS[name], np.float64) for name in ("first", "second"))
    t = np.tanh(0.3 * (x.astype(np.float64) @ w))
    return 0.3 * (1 - t**2) * (sign @ v.T)


@pytest.mark.parametrize("groups", [1, 3, 4])
def test_the_statistic_is_the_equation_and_merges(groups):
    """``X^T diag(mean_J g^2) X / n`` for every group ``J`` of neighbours, sixteen outputs in three groups too, over three batches."""
    batches = [(X[:64],), (X[64:96],), (X[96:],)]
    plan = lb.bind(network, {}, PARAMS, *batches[0])
    got = lb.observe(network, plan, PARAMS, batches, {"first": {"input": (GuidedGram(groups=groups),)}}, loss=signed)
    want = np.zeros((groups, SIZE, SIZE))
    for (x,) in batches:
        g, wide = slopes(x) ** 2, x.astype(np.float64)
        for j in range(groups):
            own = [n for n in range(HIDDEN) if n * groups // HIDDEN == j]
            want[j] += (wide * g[:, own].mean(axis=1)[:, None]).T @ wide / len(X)
    found = np.asarray(got["first"]["input"]["guided_gram"], np.float64)
    np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max())


def weighted_loss(qparams, first):
    """``sum_j (q_j - w_j)^T X^T diag(g_j^2) X (q_j - w_j)``: what the first layer's rounding costs to second order."""
    q, w = np.asarray(qparams.weights()[first].dequantize(), np.float64), np.asarray(PARAMS[first], np.float64)
    return np.sum((slopes(X) * (X.astype(np.float64) @ (q - w))) ** 2)


def test_true_sensitivities_are_worth_something_and_groups_more():
    """One group for every output is the exact weight of its rows: the weighted loss falls from gptq's, and results are nearer."""
    lost, off = {}, {}
    rules = {"first": "w3", "**": "keep"}
    for name, recipe in {
        "gptq": "gptq",
        "one group": Recipe("guided", Guided(groups=1)),
        "every output": Recipe("guided", Guided(groups=HIDDEN)),
    }.items():
        chosen = recipe if isinstance(recipe, str) else dataclasses.replace(recipe, most_rows=0)
        qparams, plan, _ = lb.quantize(network, PARAMS, rules, batches=[(X,)], recipe=chosen)
        lost[name] = weighted_loss(qparams, "first")
        off[name] = float(
            np.sum((np.asarray(lb.execute(network, plan)(qparams, X)) - np.asarray(network(PARAMS, X))) ** 2)
        )
    assert lost["every output"] < lost["one group"] < lost["gptq"], lost
    assert off["every output"] < off["gptq"], off


def test_groups_that_do_not_divide_are_one_and_all_formats_are_served():
    for rules in ({"**": "w4/g4"}, {"first": "w4/affine,a8", "**": "w3/tensor"}):
        qparams, plan, report = lb.quantize(
            network, PARAMS, rules, batches=[(X,)], recipe=Recipe("guided", Guided(groups=5))
        )
        got, want = np.asarray(lb.execute(network, plan)(qparams, X)), np.asarray(network(PARAMS, X))
        assert np.sum((got - want) ** 2) < 0.1 * np.sum(want**2)
        assert all(line.ratio is not None and line.ratio <= 1.0 for line in report.lines)


def test_bad_hyper_parameters_are_named():
    wrongs: list[dict[str, Any]] = [{"groups": 0}, {"alpha": 1.0}, {"is_centered": True}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"groups must be at least 1|guided moments are of inputs as they are"):
            Guided(**wrong)
    with pytest.raises(ValueError, match="groups must be at least 1"):
        GuidedGram(groups=0)
