"""From scores to a plan: through the public calls, on small networks."""

import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowbit as lb
from lowbit.allocate.choose import allocation
from lowbit.allocate.scores import Scores
from lowbit.plan.costs import costs
from lowbit.plan.rows import Plan

X = jnp.linspace(-1.0, 1.0, 64).reshape(4, 16)
PARAMS = {
    name: jnp.sin(jnp.arange(n * m, dtype=jnp.float32)).reshape(n, m)
    for name, n, m in (("query", 16, 16), ("key", 16, 16), ("value", 16, 16), ("out", 16, 32), ("head", 32, 8))
}


def attention(params, x):
    q, k, v = (x @ params[name] for name in ("query", "key", "value"))
    mixed = jax.nn.softmax(q @ k.T) @ v
    return jax.nn.relu(mixed @ params["out"]) @ params["head"]


def scored(plan: Plan, candidates: tuple[str, ...], seed: int = 0) -> Scores:
    paths = tuple(row.path for row in plan if row.weight is not None)
    rng = np.random.default_rng(seed)
    values = np.sort(rng.lognormal(0.0, 2.0, (len(paths), len(candidates))), axis=1)[:, ::-1]
    return Scores(paths, candidates, tuple(map(tuple, values.tolist())), "drawn")


@pytest.fixture(scope="module")
def plan():
    return lb.bind(attention, {"**": "w8"}, PARAMS, X)


def test_the_plan_is_the_best_of_all_plans_within_the_budget(plan):
    words = ("w2/g8", "w4", "w8")
    scores = scored(plan, words)
    table = scores.array()
    limit = 1700
    shapes = [PARAMS[path].shape for path in scores.paths]
    # Codes, and a scale of four bytes for every column, or for every eight rows of one.
    size = [[n * m // 4 + 4 * (n // 8) * m, n * m // 2 + 4 * m, n * m + 4 * m] for n, m in shapes]
    fits = [c for c in itertools.product(range(3), repeat=5) if sum(size[i][k] for i, k in enumerate(c)) <= limit]
    best = min(sum(table[i, k] for i, k in enumerate(choice)) for choice in fits)
    found = lb.allocate(plan, scores, budget=lb.budget(bytes=limit))
    word = {2: 0, 4: 1, 8: 2}
    chosen = {row.path: word[row.weight.spec.format.bits] for row in found if row.weight is not None}
    total = sum(table[i, chosen[path]] for i, path in enumerate(scores.paths))
    assert total == pytest.approx(best, rel=1e-12)
    assert sum(cost.nbytes for cost in costs(found)) <= limit
    packed = lb.pack(found, PARAMS, lb.init(attention, found, PARAMS, X))
    assert sum(q.nbytes for q in packed.weights().values()) == sum(cost.nbytes for cost in costs(found))


def test_several_budgets_hold_together_and_bits_count_scales(plan):
    scores = scored(plan, ("w2", "w4", "w8,a8"), seed=1)
    both = lb.budget(bits=7.5, bops=1_500_000)
    found = lb.allocate(plan, scores, budget=both)
    assert sum(cost.bops for cost in costs(found)) <= 1_500_000
    packed = lb.pack(found, PARAMS, lb.init(attention, found, PARAMS, X))
    assert packed.bits_per_weight <= 7.5
    loose = allocation(plan, scores, budget=lb.budget(bits=7.5))
    tight = allocation(plan, scores, budget=both)
    assert loose.lines[0].score <= tight.lines[0].score
    assert (loose.gap, tight.gap) == (0.0, 0.0)


def test_the_choice_beats_every_baseline_and_the_table_says_the_gap(plan):
    found = allocation(plan, scored(plan, ("w2", "w3", "w4", "w8"), seed=2), budget=lb.budget(bits=6.5))
    others = {line.name: line.score for line in found.lines[1:]}
    assert set(others) == {"uniform", "greedy", "head and tail", "reverse water-filling"}
    assert all(math.isnan(score) or found.lines[0].score <= score for score in others.values())
    assert "optimality gap 0.0e+00" in str(found)


def test_what_reads_one_input_has_one_grid_for_it(plan):
    found = allocation(plan, scored(plan, ("w4,a4", "w8,a8"), seed=3), budget=lb.budget(bits=9.0))
    assert ("query", "key", "value") in found.groups
    assert len({found.choice[name] for name in ("query", "key", "value")}) == 1
    weights_only = allocation(plan, scored(plan, ("w4", "w8"), seed=3), budget=lb.budget(bits=9.0))
    assert all(len(group) == 1 for group in weights_only.groups)
    named = allocation(plan, scored(plan, ("w4", "w8"), seed=3), budget=lb.budget(bits=9.0), groups=[("out", "head")])
    assert ("out", "head") in named.groups


def test_shared_weights_and_sums_are_tied():
    params = {"a": jnp.eye(8), "b": jnp.ones((8, 8)), "c": jnp.ones((8, 8)), "bias": jnp.ones(8)}

    def fn(p, x):
        first = jax.nn.relu(x @ p["a"])
        return (first @ p["b"] + p["bias"] + 2.0 * (x @ p["c"])) @ p["a"]

    plan = lb.bind(fn, {"**": "w8"}, params, jnp.ones((2, 8)))
    scores = scored(plan, ("w4", "w8"))
    found = allocation(plan, scores, budget=lb.budget(bits=10.0), ties=("sums",))
    assert set(found.groups) == {("a@0", "a@1"), ("b", "c")}


def test_only_what_the_target_holds_is_chosen():
    params = {"a": PARAMS["query"], "b": PARAMS["out"]}
    fn = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]  # noqa: E731 (a model in a line)
    plan = lb.bind(fn, {"**": "w8,a8"}, params, X, integer=True)
    scores = Scores(("a", "b"), ("w2", "w4", "w8"), ((0.0, 1.0, 2.0),) * 2)  # fewer bits would be better
    chosen = lb.allocate(plan, scores, budget=lb.budget(flash=10_000), target="tflm")
    assert [row.weight.spec.format.bits for row in chosen] == [8, 8]  # w4 by channel is not among what it holds
    assert chosen.is_full_integer
    chosen = lb.allocate(plan, scores, budget=lb.budget(flash=10_000), target="cortex-m4")
    assert [row.weight.spec.format.bits for row in chosen] == [2, 2]


def test_the_front_falls_and_has_uniform_plans_above_it(plan):
    found = lb.pareto(plan, scored(plan, ("w2", "w4", "w8"), seed=4), unit="bits", points=12)
    assert [p.cost for p in found.points] == sorted({p.cost for p in found.points})
    scores = [p.score for p in found.points]
    assert scores == sorted(set(scores), reverse=True)
    assert len(found.uniform) == 3
    for same in found.uniform:
        assert same.score >= min(p.score for p in found.points if p.cost <= same.cost + 1e-9) - 1e-9
    assert json.loads(found.json())["unit"] == "bits"
    assert "uniform w4" in str(found)


def test_measured_times_are_taken_and_given_ones_believed(plan):
    scores = scored(plan, ("w4", "w8"), seed=5)
    times = {path: {"w4": 2.0, "w8": 1.0} for path in scores.paths}
    found = allocation(plan, scores, budget=lb.budget(milliseconds=5.0), times=times)
    assert set(found.choice.values()) == {"w8"}
    measured = lb.pareto(plan, scores, unit="milliseconds", points=2)
    assert all(0 < p.cost < 1e4 for p in measured.points)


def test_scores_go_through_json(plan):
    scores = dataclasses.replace(scored(plan, ("w4", "w8")), values=((math.inf, 1.0),) * 5)
    assert Scores.from_json(scores.json()) == scores
    with pytest.raises(ValueError, match=r"text must be what Scores\.json wrote"):
        Scores.from_json("{}")


def test_bad_input_is_answered(plan):
    scores = scored(plan, ("w4", "w8"))
    with pytest.raises(ValueError, match=r"bits <= 3 is 2\.\d+ below the least possible, .*taken by"):
        lb.allocate(plan, scores, budget=lb.budget(bits=3.0))
    with pytest.raises(ValueError, match="scores of 'query' with 'w4' are nan"):
        lb.allocate(plan, dataclasses.replace(scores, values=((math.nan, 1.0),) * 5), budget=lb.budget(bits=9.0))
    limit = lb.budget(bits=9.0)
    first = dataclasses.replace(scores, values=((math.inf, math.inf), *scores.values[1:]))
    with pytest.raises(ValueError, match="no candidate of w4, w8 fits 'query'"):
        lb.allocate(plan, first, budget=limit)
    apart = dataclasses.replace(scores, values=((math.inf, 1.0), (1.0, math.inf), *scores.values[2:]))
    with pytest.raises(ValueError, match=r"ties contradict .*query, key must have one"):
        lb.allocate(plan, apart, budget=limit, groups=[("query", "key")])
    with pytest.raises(ValueError, match=r"groups: 'quary' matches no operation .*query"):
        lb.allocate(plan, scores, budget=limit, groups=[("quary",)])
    fewer = dataclasses.replace(scores, paths=scores.paths[:-1], values=scores.values[:-1])
    with pytest.raises(ValueError, match="scores are of another plan: they differ in head"):
        lb.allocate(plan, fewer, budget=limit)
    with pytest.raises(ValueError, match="unknown target 'm4'"):
        lb.allocate(plan, scores, budget=lb.budget(bits=9.0), target="m4")
    with pytest.raises(ValueError, match="takes full-integer plans only"):
        lb.allocate(plan, scores, budget=lb.budget(bits=9.0), target="cortex-m4")
    with pytest.raises(ValueError, match="unit must be one of"):
        lb.pareto(plan, scores, unit="grams")
    with pytest.raises(ValueError, match="no operation with a quantized weight"):
        lb.allocate(lb.bind(attention, {}, PARAMS, X), scores, budget=lb.budget(bits=9.0))


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, "needs a limit"), ({"bits": 0}, "positive"), ({"bytes": math.nan}, "finite"), ({"ram": "1k"}, "a number")],
)
def test_a_budget_is_checked(given, said):
    with pytest.raises((ValueError, TypeError), match=said):
        lb.budget(**given)
