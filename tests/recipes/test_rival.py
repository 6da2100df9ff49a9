"""A rival on held-out batches: where calibration misleads a recipe, plain GPTQ is kept, and said to be."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.recipes.lookup import named

SIZE = 16


def network(p, x):
    for k in "abc":
        x = jnp.tanh(x @ p[k]["w"] + p[k]["b"])
    return x


def masked(p, x, mask):
    return jnp.sum(network(p, x) * mask[..., None], axis=1)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(1)
    return {k: {"w": jnp.asarray(rng.normal(size=(SIZE, SIZE)) / 4, jnp.float32), "b": jnp.zeros(SIZE)} for k in "abc"}


def lost(fn, params, rules, batches, unseen, recipe):
    """The squared error of the packed model on inputs that no calibration has seen, in float64, and the report."""
    qparams, plan, report = lb.quantize(fn, params, {"**": rules}, batches=batches, recipe=recipe)
    y, right = (np.asarray(x, np.float64) for x in (lb.execute(fn, plan)(qparams, *unseen), fn(params, *unseen)))
    return float(np.sum((y - right) ** 2)), report


def correlated(rng, rows):
    apart = np.abs(np.subtract.outer(range(SIZE), range(SIZE)))
    return (rng.normal(size=(rows, SIZE)) @ np.linalg.cholesky(0.95**apart).T).astype(np.float32)


def test_fewer_rows_than_inputs_mislead_a_target_and_plain_gptq_is_kept(params):
    rng = np.random.default_rng(0)
    batches, unseen = [(correlated(rng, 3),) for _ in range(5)], (correlated(rng, 1024),)
    qronos = named("qronos")
    alone, _ = lost(network, params, "w3,a3", batches, unseen, dataclasses.replace(qronos, rival=None))
    guarded, report = lost(network, params, "w3,a3", batches, unseen, qronos)
    assert report.recipe.startswith("qronos:")
    assert "gptq kept: on 1 held-out batches" in report.recipe
    assert guarded < 0.95 * alone


def test_rows_that_never_reach_the_result_do_not_count(params):
    """Most rows are padding far away, which a mask drops: means that follow them lose, and what is kept does not."""
    rng = np.random.default_rng(2)

    def drawn(count):
        x = rng.normal(size=(count, 16, SIZE))
        mask = np.broadcast_to(np.arange(16) < 6, (count, 16)).astype(np.float32)
        away = 8.0 * np.sign(np.arange(SIZE) - 7.5) + 3.0 * x
        return np.where(mask[..., None] > 0, x, away).astype(np.float32), mask

    batches, unseen = [drawn(16) for _ in range(8)], drawn(256)
    plain, _ = lost(masked, params, "w3,a4", batches, unseen, "gptq")
    guarded, _ = lost(masked, params, "w3,a4", batches, unseen, "centered")
    assert guarded < 1.1 * plain  # 1.15 to 1.3 without the rival


def test_of_two_recipes_the_one_that_loses_less_is_kept_in_either_order(params):
    rng = np.random.default_rng(3)
    batches, unseen = [(correlated(rng, 64),) for _ in range(4)], (correlated(rng, 8),)
    good, bad = named("gptq"), named("rtn")
    for first, second in ((good, bad), (bad, good)):
        _, report = lost(network, params, "w3", batches, unseen, dataclasses.replace(first, rival=second))
        assert "gptq kept" in report.recipe
