"""A budget of flash that the compiled program keeps, with this machine's own C compiler."""

import dataclasses
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.allocate.scores import Scores
from lowbit.export.fitting import fitting

RNG = np.random.default_rng(0)
PARAMS = {name: jnp.asarray(RNG.normal(size=(64, 64)), jnp.float32) for name in ("a", "b")}
BATCHES = [(jnp.asarray(RNG.normal(size=(8, 64)), jnp.float32),)]
RULES = ("w2,a8", "w4,a8", "w8,a8")
GIVEN = {"args": (BATCHES[0][0][:1],), "target": "c"}


def model(params, x):
    return jax.nn.relu(x @ params["a"]) @ params["b"]


def bound(**options):
    return lb.bind(model, {"**": "w8,a8"}, PARAMS, *BATCHES[0], **options)


SCORES = Scores(("a", "b"), RULES, ((9.0, 3.0, 1.0), (90.0, 30.0, 10.0)))


def object_bytes(plan, path):
    """Code and constants of a plan's model, compiled here and counted by ``size``: a way of its own to the same number."""
    qparams = lb.pack(plan, PARAMS, lb.calibrate(model, plan, PARAMS, BATCHES))
    bundle = lb.export(model, plan, qparams, GIVEN["args"], path, integer_io=True, targets=["c"])
    subprocess.run(["gcc", "-std=c99", "-Os", "-c", "model.c", "-o", "model.o"], cwd=bundle.path / "c", check=True)
    counts = subprocess.run(["size", "model.o"], cwd=bundle.path / "c", check=True, capture_output=True, text=True)
    text, data, *_ = counts.stdout.splitlines()[1].split()
    return int(text) + int(data)


def test_bits_fall_until_the_program_fits(tmp_path):
    weights = 2 * 64 * 64 + 2 * 64 * 4  # 8 bits of everything, and scales: as a budget counts
    seen = []
    best, programs = fitting(
        model,
        bound(integer=True),
        PARAMS,
        BATCHES,
        SCORES,
        budget=lb.budget(flash=weights),
        progress=seen.append,
        **GIVEN,
    )
    assert tuple(seen) == programs
    assert programs[0].weights <= weights < programs[0].flash  # what the budget alone would have let through
    assert programs[-1].flash <= weights
    assert [each.weights for each in programs] == sorted({each.weights for each in programs}, reverse=True)
    assert best.choice == {"a": "w4,a8", "b": "w8,a8"}  # the cheaper loss gives way
    assert object_bytes(best.plan, tmp_path / "m") == pytest.approx(programs[-1].flash, rel=0.1)  # by other flags


def test_what_cannot_be_is_said():
    plan, budget = bound(integer=True), lb.budget(flash=9000)
    with pytest.raises(ValueError, match="bind with integer=True"):
        fitting(model, bound(), PARAMS, BATCHES, SCORES, budget=budget, **GIVEN)
    with pytest.raises(ValueError, match="budget must limit flash, got bits <= 3"):
        fitting(model, plan, PARAMS, BATCHES, SCORES, budget=lb.budget(bits=3), **GIVEN)
    with pytest.raises(ValueError, match=r"target must be one that takes C: .*cortex-m4.*, got 'iree'"):
        fitting(model, plan, PARAMS, BATCHES, SCORES, budget=budget, **(GIVEN | {"target": "iree"}))
    only = dataclasses.replace(SCORES, candidates=RULES[:1], values=((9.0,), (90.0,)))
    with pytest.raises(
        ValueError, match=r"the smallest program that was compiled is [\d,]+ bytes over 2,600: the budget cannot"
    ):
        fitting(model, plan, PARAMS, BATCHES, only, budget=lb.budget(flash=2600), **GIVEN)
