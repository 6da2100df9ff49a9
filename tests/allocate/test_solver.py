"""The solver against brute force, published assignments, and closed forms."""

import time

import numpy as np
import pytest

from lowbit.allocate import baselines
from lowbit.allocate.milp import solve
from lowbit.allocate.pareto import front
from lowbit.allocate.problem import Infeasible, Problem

from . import hawq_v3 as paper


def every_choice(decisions: int, candidates: int) -> np.ndarray:
    """All assignments, ``[decisions, candidates ** decisions]``."""
    return np.indices((candidates,) * decisions).reshape(decisions, -1)


def sums(table: np.ndarray, choices: np.ndarray) -> np.ndarray:
    return np.sum([row[choice] for row, choice in zip(table, choices, strict=True)], axis=0)


def drawn(seed: int, decisions: int, candidates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.lognormal(0.0, 3.0, (decisions, candidates)), axis=1)[:, ::-1].copy()
    sizes = rng.integers(1, 1000, (decisions, 1)) * 2.0 ** np.arange(1, candidates + 1)
    return scores, sizes, rng.uniform(size=(decisions, candidates))


@pytest.mark.parametrize("seed", range(4))
def test_two_budgets_at_once_are_solved_as_brute_force_does(seed):
    decisions, candidates = 12, 3
    scores, sizes, times = drawn(seed, decisions, candidates)
    scores[seed, 2] = np.inf  # does not fit
    choices = every_choice(decisions, candidates)
    total, size, seconds = sums(scores, choices), sums(sizes, choices), sums(times, choices)
    limits = {"bytes": float(np.quantile(size, 0.1 + 0.2 * seed)), "milliseconds": float(np.quantile(seconds, 0.4))}
    best = total[(size <= limits["bytes"]) & (seconds <= limits["milliseconds"])].min()
    names, words = tuple(f"d{i}" for i in range(decisions)), ("w2", "w4", "w8")
    problem = Problem(names, words, scores, {"bytes": sizes, "milliseconds": times}, limits)
    found = solve(problem)
    assert found.score == pytest.approx(best, rel=1e-12)
    assert found.gap == 0.0
    assert problem.is_within(found.choice)


def test_the_largest_of_several_moments_counts():
    scores, sizes, _ = drawn(7, 6, 3)
    moments = np.stack([sizes * (np.arange(6) // 2 == k)[:, None] for k in range(3)])
    choices = every_choice(6, 3)
    peak = np.max([sums(m, choices) for m in moments], axis=0)
    limit = float(np.quantile(peak, 0.3))
    found = solve(Problem(tuple("abcdef"), ("1", "2", "3"), scores, {"ram": moments}, {"ram": limit}))
    assert found.score == pytest.approx(sums(scores, choices)[peak <= limit].min(), rel=1e-12)


def test_a_limit_that_is_met_to_the_last_byte_is_met():
    scores = np.array([[5.0, 1.0], [7.0, 1.0]])
    sizes = np.array([[1e9, 3e9 + 1], [1e9, 2e9 + 7]])
    for limit, best in ((3e9 + 7, 6.0), (3e9 + 6, 12.0), (5e9 + 8, 2.0), (5e9 + 7, 6.0)):
        expected = min(
            scores[0, i] + scores[1, j] for i in (0, 1) for j in (0, 1) if sizes[0, i] + sizes[1, j] <= limit
        )
        assert expected == best
        assert solve(Problem(("a", "b"), ("w2", "w4"), scores, {"bytes": sizes}, {"bytes": limit})).score == best


def resnet18() -> Problem:
    """The paper's program, its tied layers as one decision each."""
    trace = np.array(paper.HESSIAN_TRACE)
    each = np.stack([trace * paper.SQUARED_WEIGHT_ERROR_4, trace * paper.SQUARED_WEIGHT_ERROR_8], axis=1)
    macs, sizes = np.array(paper.MACS, float), np.array(paper.PARAMETERS, float)
    costs = {
        "bops": np.stack([macs / 64, macs / 16], axis=1),
        "bytes": np.stack([sizes / 2, sizes], axis=1),
        "milliseconds": np.stack([paper.LATENCY_MS_4, paper.LATENCY_MS_8], axis=1),
    }
    groups = [[i] for i in range(19) if i not in {j for _, j in paper.TIES}]
    groups = [group + [j for i, j in paper.TIES if i == group[0]] for group in groups]

    def merged(table: np.ndarray) -> np.ndarray:
        return np.stack([table[group].sum(axis=0) for group in groups])

    names = tuple(" + ".join(map(str, group)) for group in groups)
    return Problem(names, ("4", "8"), merged(each), {unit: merged(cost) for unit, cost in costs.items()}, {})


def bits_by_layer(problem: Problem, choice: np.ndarray) -> list[int]:
    bits = [0] * 19
    for name, c in zip(problem.names, choice, strict=True):
        for layer in name.split(" + "):
            bits[int(layer)] = int(problem.candidates[c])
    return bits


def test_hawq_v3_at_half_the_bit_operations_is_the_published_assignment():
    problem = resnet18()
    middle = 0.5 * (problem.least("bops") + problem.most("bops"))
    start = time.process_time()
    found = solve(problem.with_limits(bops=middle))
    assert time.process_time() - start < 1.0
    assert bits_by_layer(problem, found.choice) == paper.OPTIMUM_BOPS
    assert found.score == pytest.approx(0.215689, abs=1e-6)
    half = 0.5 * (problem.least("bytes") + problem.most("bytes"))
    assert solve(problem.with_limits(bytes=half)).score == pytest.approx(0.074506, abs=1e-6)


@pytest.mark.parametrize("unit", ["bops", "bytes", "milliseconds"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_hawq_v3_under_every_budget_is_the_optimum(unit, share):
    problem = resnet18()
    limit = problem.least(unit) + share * (problem.most(unit) - problem.least(unit))
    choices = every_choice(len(problem.names), 2)
    best = sums(problem.scores, choices)[sums(problem.costs[unit], choices) <= limit * (1 + 1e-12)].min()
    assert solve(problem.with_limits(**{unit: limit})).score == pytest.approx(best, rel=1e-12)


def test_a_thousand_layers_are_solved_in_seconds():
    rng = np.random.default_rng(3)
    bits = np.array([2.0, 3.0, 4.0, 5.0, 6.0, 8.0])
    sizes = rng.integers(1_000, 1_000_000, (1000, 1)).astype(float)
    scores = rng.lognormal(0.0, 2.0, (1000, 1)) * 4.0**-bits * rng.lognormal(0.0, 0.2, (1000, 6))
    names = tuple(map(str, range(1000)))
    problem = Problem(names, tuple(map(str, bits)), scores, {"bits": sizes * bits}, {"bits": 4.0 * sizes.sum()})
    start = time.process_time()  # of this process: others may be at work
    found = solve(problem)
    assert time.process_time() - start < 10.0
    assert found.gap < 1e-6
    assert problem.is_within(found.choice)
    greedy = baselines.descended(problem)
    assert greedy is not None
    assert found.score <= problem.score(greedy)


def test_water_filling_is_met_exactly():
    variances = np.array([16.0, 4.0, 1.0, 0.25])
    levels = baselines.water_levels(variances.tolist(), 4.0)
    assert levels.tolist() == [5.5, 4.5, 3.5, 2.5]
    uniform = np.mean(variances * 4.0**-4)
    assert 10 * np.log10(uniform / np.mean(variances * 4.0**-levels)) == pytest.approx(4.2427, abs=1e-4)
    bits = np.arange(0.5, 8.5, 0.5)  # the same optimum, chosen from widths that are fine enough
    scores = variances[:, None] * 4.0**-bits
    problem = Problem(tuple("abcd"), tuple(map(str, bits)), scores, {"bits": np.tile(bits, (4, 1))}, {"bits": 16.0})
    assert bits[solve(problem).choice].tolist() == levels.tolist()
    filled = baselines.water_filled(problem, np.tile(bits, (4, 1)), np.ones(4))
    assert filled is not None
    assert bits[filled].tolist() == levels.tolist()


def test_water_filling_leaves_out_what_is_below_the_level():
    levels = baselines.water_levels([16.0, 1e-6], 1.0)
    assert levels.tolist() == [2.0, 0.0]
    weighted = baselines.water_levels([16.0, 1.0], 3.0, [1.0, 3.0])
    assert np.dot(weighted, [1.0, 3.0]) == pytest.approx(12.0)
    assert weighted[0] - weighted[1] == pytest.approx(2.0)


def test_the_front_is_monotone_and_no_choice_is_better():
    scores, sizes, _ = drawn(11, 8, 3)
    problem = Problem(tuple("abcdefgh"), ("w2", "w4", "w8"), scores, {"bytes": sizes}, {})
    found = front(problem, "bytes", points=40)
    costs, values = [p.cost for p in found.points], [p.score for p in found.points]
    assert costs == sorted(set(costs))
    assert values == sorted(set(values), reverse=True)
    choices = every_choice(8, 3)
    size, total = sums(sizes, choices), sums(scores, choices)
    for point in found.points:
        assert point.score == pytest.approx(total[size <= point.cost].min(), rel=1e-12)
    assert (costs[0], costs[-1]) == (size.min(), size[np.argmin(total)])


def test_an_unreachable_budget_says_by_how_much_and_why():
    sizes = np.array([[1000.0, 2000.0], [10.0, 20.0]])
    problem = Problem(
        ("big", "small"), ("w4", "w8"), np.ones((2, 2)), {"bytes": sizes}, {"bytes": 900.0}, {"bytes": 40.0}
    )
    with pytest.raises(
        Infeasible, match=r"bytes <= 900 is 150 below the least possible, 1,050, .*big \(1,000\).*\(40\)"
    ):
        solve(problem)


def test_budgets_that_exclude_each_other_say_so():
    costs = {"bytes": np.array([[1.0, 9.0]] * 2), "milliseconds": np.array([[9.0, 1.0]] * 2)}
    problem = Problem(("a", "b"), ("w4", "w8"), np.ones((2, 2)), costs, {"bytes": 9.0, "milliseconds": 9.0})
    with pytest.raises(Infeasible, match="each of bytes, milliseconds can be met alone, and not all together"):
        solve(problem)


def test_scores_that_are_no_numbers_are_refused():
    scores = np.array([[1.0, np.nan]])
    with pytest.raises(ValueError, match="scores must be numbers: that of 'a' with 'w8' is nan"):
        Problem(("a",), ("w4", "w8"), scores, {}, {})
    with pytest.raises(ValueError, match="no candidate of w4 fits a"):
        Problem(("a",), ("w4",), np.array([[np.inf]]), {}, {})
