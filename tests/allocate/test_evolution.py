"""Evolution: the best of all choices where scores do not add up, and what it says of a model is what the model does."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.allocate import milp
from lowbit.allocate.evolution import evolve, search
from lowbit.allocate.measures import mse
from lowbit.allocate.problem import Problem
from tests.values import heavy_tailed, normal


def test_it_finds_the_best_of_all_choices_where_sums_do_not():
    """Six decisions of three candidates with pairs that cost as much as either: brute force over those within the budget."""
    rng = np.random.default_rng(3)
    scores = np.sort(rng.uniform(0, 1, (6, 3)))[:, ::-1].copy()
    pairs = rng.normal(size=(6, 3, 6, 3))
    costs = np.tile(np.array([2.0, 3.0, 4.0]), (6, 1))
    problem = Problem(tuple("abcdef"), ("2", "3", "4"), scores, {"bits": costs}, {"bits": 18.0})

    def fitness(choice, batches):
        picked = np.eye(3)[np.asarray(choice)]
        return problem.score(choice) + float(np.einsum("ic,icjd,jd->", picked, pairs, picked)) + 0.0 * batches

    within = [np.array(c) for c in itertools.product(range(3), repeat=6) if problem.is_within(c)]
    best = min(fitness(c, 1) for c in within)
    start = np.asarray(milp.solve(problem).choice, int)
    assert fitness(start, 1) > best + 0.5
    found, history = search(problem, start, fitness, stages=[(6, 1), (1, 2)], generations=60, offspring=24)
    assert fitness(found, 1) == pytest.approx(best, abs=1e-12)
    assert problem.is_within(found)
    assert (np.diff(history) <= 0).all()
    again, _ = search(problem, start, fitness, stages=[(6, 1), (1, 2)], generations=60, offspring=24)
    np.testing.assert_array_equal(again, found)
    with pytest.raises(ValueError, match="within the budget"):
        search(problem, np.full(6, 2), fitness, stages=[(1, 1)], generations=1, offspring=1)


PARAMS = {"a": heavy_tailed(1, 16, 12), "b": heavy_tailed(2, 12, 12), "c": heavy_tailed(3, 12, 6)}
BATCHES = [(normal(10 + i, 8, 16),) for i in range(4)]


def model(params, x):
    return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["c"]


def test_a_model_s_choice_measures_what_it_says():
    plan = lb.bind(model, {"**": "w4"}, PARAMS, *BATCHES[0])
    scores = lb.sensitivity(model, plan, PARAMS, BATCHES[:1], candidates=("w2", "w3", "w4", "w6"), method="sqnr")
    budget, done = lb.budget(bits=3.6 + 32 * 30 / 408), []
    found = evolve(
        model,
        plan,
        PARAMS,
        BATCHES,
        scores,
        budget=budget,
        measure=mse,
        generations=6,
        offspring=8,
        progress=done.append,
    )
    assert done == list(range(1, 7))
    assert found.measured <= found.start
    rows: Any = found.plan.rows
    assert [row.weight.spec.format.bits for row in rows] == [int(found.choice[k][1]) for k in "abc"]
    state = lb.calibrate(model, found.plan, PARAMS, BATCHES)
    packed = lb.pack(found.plan, PARAMS, state).weights()
    w = {k: np.asarray(q.dequantize(), np.float64) for k, q in packed.items()}
    exact = {k: np.asarray(v, np.float64) for k, v in PARAMS.items()}

    def run(p, x):
        return np.tanh(np.tanh(np.asarray(x, np.float64) @ p["a"]) @ p["b"]) @ p["c"]

    assert found.measured == pytest.approx(
        np.mean([np.mean((run(w, x) - run(exact, x)) ** 2) for (x,) in BATCHES]), rel=1e-4
    )
    assert sum(8 * q.nbytes for q in packed.values()) <= budget.limits["bits"] * sum(v.size for v in PARAMS.values())


def test_what_evolution_is_not_for_is_said():
    plan = lb.bind(model, {"**": "w4,a8"}, PARAMS, *BATCHES[0])
    scores = lb.sensitivity(model, plan, PARAMS, BATCHES[:1], candidates=("w2", "w4"), method="sqnr")
    with pytest.raises(ValueError, match="inputs in float"):
        evolve(model, plan, PARAMS, BATCHES, scores, budget=lb.budget(bits=8.0))
