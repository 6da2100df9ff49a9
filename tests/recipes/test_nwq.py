"""`nwq`: the whole network as one block, what it loses before and after in float64 numpy, and what it may not learn."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.recipes.lookup import named

SIZES = (16, 24, 24, 24, 8)


def recipe(**changes):
    """The recipe without its rewrite, so that it starts at what `gptq` makes, and with a rate for few steps."""
    changes = {"rates": (0.003,), **changes}
    return dataclasses.replace(named("nwq"), rewrite=None, blocks=dataclasses.replace(named("nwq").blocks, **changes))


def network(p, x):
    for i in range(len(SIZES) - 1):
        x = jax.nn.relu(x @ p[f"l{i}"]["w"] + p[f"l{i}"]["b"])
    return x


def float64(p, x):
    x = np.asarray(x, np.float64)
    for i in range(len(SIZES) - 1):
        x = np.maximum(x @ np.asarray(p[f"l{i}"]["w"], np.float64) + np.asarray(p[f"l{i}"]["b"], np.float64), 0)
    return x


def unpacked(qparams):
    weights = qparams.weights()
    return {
        f"l{i}": {"w": weights[f"l{i}/w"].dequantize(), "b": qparams.params[f"l{i}"]["b"]}
        for i in range(len(SIZES) - 1)
    }


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    params = {
        f"l{i}": {
            "w": jnp.asarray(rng.standard_t(4, size=(k, n)) / np.sqrt(k), jnp.float32),
            "b": jnp.asarray(rng.normal(size=n) / 4, jnp.float32),
        }
        for i, (k, n) in enumerate(itertools.pairwise(SIZES))
    }
    mixed = rng.normal(size=(16, 16)) * np.geomspace(1, 0.05, 16)
    x = (rng.normal(size=(16 * 64 + 1024, 16)) @ mixed).astype(np.float32)
    return params, [(x[i : i + 64],) for i in range(0, 1024, 64)], x[1024:]


@pytest.fixture(scope="module")
def solved(case):
    params, batches, _ = case
    return lb.quantize(network, params, {"**": "w3"}, batches=batches, recipe="gptq")[0]


def lost(y, right):
    return np.sum((np.asarray(y, np.float64) - right) ** 2) / np.sum(right**2)


def test_it_loses_less_on_unseen_inputs_than_gptq_and_than_blocks_of_one_layer(case):
    """Of equal steps for every weight; learned layer by layer, no layer takes back what one before it left."""
    params, batches, x = case
    right, error = float64(params, x), {}
    one = recipe(steps=200, most=1)
    for name, each in (("gptq", named("gptq")), ("layers", one), ("nwq", recipe(steps=200))):
        qparams, plan, _ = lb.quantize(network, params, {"**": "w3,a8"}, batches=batches, recipe=each)
        error[name] = lost(lb.execute(network, plan)(qparams, x), right)
    assert error["nwq"] < 0.75 * error["gptq"]
    assert error["nwq"] < 0.85 * error["layers"]


def test_the_report_says_what_the_network_loses_on_held_out_batches(case, solved):
    """Before and after, in float64 from packed weights: the last eighth of the batches, one block for all operations."""
    params, batches, _ = case
    after, _, report = lb.quantize(network, params, {"**": "w3"}, batches=batches, recipe=recipe(steps=40))
    errors = [
        np.mean([lost(float64(unpacked(q), x), float64(params, x)) for (x,) in batches[-2:]]) for q in (solved, after)
    ]
    decibels = [f"{-10 * np.log10(each):.1f}" for each in errors]
    said = f"its block is learned: {decibels[0]} dB on held-out batches, {decibels[1]} learned"
    assert errors[1] < errors[0]
    for line in report.lines:
        assert [note for note in line.notes if "held-out" in note] == [said]


def test_what_does_not_come_out_better_stays_as_gptq_left_it(case, solved):
    params, batches, _ = case
    spoilt, _, report = lb.quantize(
        network, params, {"**": "w3"}, batches=batches, recipe=recipe(steps=20, rates=(5.0,))
    )
    assert all("its block stays as solved" in " ".join(line.notes) for line in report.lines)
    jax.tree.map(np.testing.assert_array_equal, solved.params, spoilt.params)
