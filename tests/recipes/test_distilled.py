"""`distilled`: what it returns is never worse than where it starts, on the batch that it holds back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.recipes.distilled import Distill
from lowbit.recipes.lookup import named


def network(params, x):
    return jax.nn.relu(x @ params["a"] + params["b"]) @ params["c"]


def test_it_is_never_worse_than_its_start_and_better_where_there_is_room():
    rng = np.random.default_rng(0)
    sizes = {"a": (12, 16), "b": (16,), "c": (16, 6)}
    params = {name: jnp.asarray(rng.standard_t(4, size=shape), jnp.float32) for name, shape in sizes.items()}
    batches = [(np.float32(rng.normal(size=(256, 12))),) for _ in range(2)]
    (held,) = batches[-1]
    start = named("centered")
    lost = {}
    for name, rate in (("start", None), ("wild", 1e4), ("distilled", 0.02)):
        finish = None if rate is None else Distill(steps=100, rate=rate)
        recipe = dataclasses.replace(start, name=name, finish=finish)
        qparams, plan, report = lb.quantize(network, params, {"**": "w3,a8"}, batches=batches, recipe=recipe)
        off = lb.execute(network, plan)(qparams, held) - network(params, held)
        lost[name] = float(np.sum(np.square(off, dtype=np.float64)))
        said = [note for note in report.lines[0].notes if note.startswith("distilled:")]
        assert len(said) == (rate is not None)
    assert lost["wild"] == pytest.approx(lost["start"], rel=1e-6)  # no step of it was better: none is kept
    assert lost["distilled"] < 0.7 * lost["start"]


def test_numbers_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="steps, rate and every must be positive, got 0"):
        Distill(steps=0)
