"""The exact choice: an integer linear program, solved by HiGHS.

minimise sum_d sum_c S[d, c] x[d, c],   sum_c x[d, c] = 1,   sum_d sum_c cost_u[d, c] x[d, c] <= limit_u,   x in {0, 1}
"""

import dataclasses
import time
from typing import Any

import numpy as np

from .baselines import descended
from .problem import Infeasible, Problem

_SCALE = 1e4
"""Tolerances of HiGHS are absolute, 1e-6: objective and limits are scaled to this size."""


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """A choice, and how far from the best it can be at most.

    Attributes:
        choice: the index of a candidate for every decision.
        score: the sum of scores.
        bound: no choice within the budget has a lower score than this.
        seconds: that the solver took.
    """

    choice: np.ndarray
    score: float
    bound: float
    seconds: float

    @property
    def gap(self) -> float:
        """The optimality gap: ``score - bound`` over ``|score|``; 0 where the choice is proven to be the best."""
        return max(0.0, self.score - self.bound) / max(abs(self.score), 1e-300)


def solve(problem: Problem, *, seconds: float = 60.0) -> Solution:
    """Returns the best choice within the budget.

    Args:
        problem: what to choose from.
        seconds: after which the best choice that was found is returned with its gap.

    Raises:
        Infeasible: if there is none: by how much, and what takes it.
        RuntimeError: if time was up before any choice within the budget was found.

    Example:
        >>> scores = np.array([[4.0, 1.0], [9.0, 1.0]])
        >>> costs = {"bytes": np.array([[1.0, 2.0], [1.0, 2.0]])}
        >>> found = solve(Problem(("a", "b"), ("w2", "w4"), scores, costs, {"bytes": 3.0}))
        >>> found.choice.tolist(), found.score, found.gap
        ([0, 1], 5.0, 0.0)
    """
    start = time.perf_counter()
    problem.check_reachable()
    base = np.min(problem.scores, axis=1)
    extra = np.where(problem.allowed, problem.scores - base[:, None], np.inf)
    useful = problem.allowed & ~_dominated(problem)
    best = descended(problem)
    while True:
        # Nothing that alone is worse than a choice that is known can be part of a better one, and no scale is larger.
        reach = np.inf if best is None else problem.score(best) - float(base.sum())
        scale = reach if np.isfinite(reach) else float(np.sum(np.max(np.where(useful, extra, 0.0), axis=1)))
        kept = useful & (extra <= reach * (1 + 1e-12))
        if best is not None:
            kept[np.arange(len(base)), best] = True
        left = max(1.0, seconds - (time.perf_counter() - start))
        choice, bound = _once(problem, kept, extra, scale or 1.0, left)
        if choice is None:
            if best is None:
                raise RuntimeError(f"no choice within the budget was found in {seconds:g} s: raise seconds=")
            choice = best
        if best is not None and problem.score(choice) > problem.score(best):
            choice = best
        score = problem.score(choice)
        if score - float(base.sum()) >= 1e-3 * scale or score <= float(base.sum()):
            break
        best = choice
    reached = min(bound + float(base.sum()), score)
    if score - reached <= 1e-9 * max(abs(score), scale):
        reached = score
    return Solution(np.asarray(choice), score, reached, time.perf_counter() - start)


def _once(
    problem: Problem, kept: np.ndarray, extra: np.ndarray, scale: float, seconds: float
) -> tuple[np.ndarray | None, float]:
    """The best choice of what is kept and the bound, above the sum of the least scores; None where none was found."""
    from scipy import optimize, sparse  # here: a quarter of the time that importing lowbit would take

    at = np.argwhere(kept)
    count = len(at)
    objective = extra[kept] / scale * _SCALE
    one = sparse.csr_matrix((np.ones(count), (at[:, 0], np.arange(count))), (len(problem.names), count))
    tightened = 0.0
    for _ in range(8):
        constraints = [optimize.LinearConstraint(one, 1, 1)]
        for unit, limit in problem.limits.items():
            rows, room = _limited(problem, kept, unit, limit)
            upper: Any = room * (1 - tightened)  # its stubs know numbers only
            constraints.append(optimize.LinearConstraint(sparse.csr_matrix(rows), -np.inf, upper))
        solution = optimize.milp(
            objective, integrality=np.ones(count), bounds=optimize.Bounds(0, 1), constraints=constraints,
            options={"mip_rel_gap": 0.0, "time_limit": seconds},
        )  # fmt: skip
        if solution.status == 2:
            raise Infeasible(f"the budget cannot be met: {_together(problem)}")
        if solution.x is None:
            return None, -np.inf
        choice = np.full(len(problem.names), -1)
        taken = solution.x > 0.5
        choice[at[taken, 0]] = at[taken, 1]
        bound = solution.mip_dual_bound if solution.mip_dual_bound is not None else solution.fun
        if problem.is_within(choice):
            return choice, bound * scale / _SCALE
        tightened = 2.0 * tightened or 1e-10  # within the solver's tolerance, and over the limit
        tightened *= 10
    return None, -np.inf


def _limited(problem: Problem, kept: np.ndarray, unit: str, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """The rows of one limit, less what every decision costs at least, scaled; and the room that is left."""
    rows = problem.rows(unit)
    floor = np.min(np.where(kept, rows, np.inf), axis=2)
    room = limit - problem.fixed.get(unit, 0.0) - floor.sum(axis=1)
    above = (rows - floor[:, :, None])[:, kept]
    factor = _SCALE / np.maximum(np.abs(room), np.max(above, axis=1, initial=0.0) * 1e-3 + 1e-300)
    return above * factor[:, None], room * factor


def _dominated(problem: Problem) -> np.ndarray:
    """Candidates beside which another one of the decision scores no worse and costs no more, in any unit with a limit."""
    columns = [problem.scores, *(row for unit in problem.limits for row in problem.rows(unit))]
    count = len(problem.candidates)
    is_dominated = np.zeros_like(problem.scores, bool)
    for c in range(count):
        for other in range(count):
            if other == c:
                continue
            no_worse = np.all([x[:, other] <= x[:, c] for x in columns], axis=0)
            better = np.any([x[:, other] < x[:, c] for x in columns], axis=0)
            is_dominated[:, c] |= (
                no_worse & (better | (other < c)) & ~is_dominated[:, other] & problem.allowed[:, other]
            )
    return is_dominated


def _together(problem: Problem) -> str:
    """What is wrong with limits of which each alone can be met: the smallest excess over all of them at once."""
    from scipy import optimize

    allowed = problem.allowed
    at = np.argwhere(allowed)
    count, units = len(at), list(problem.limits)
    one = np.zeros((len(problem.names), count + 1))
    one[at[:, 0], np.arange(count)] = 1
    constraints = [optimize.LinearConstraint(one, 1, 1)]
    for unit in units:
        rows = problem.rows(unit)[:, allowed]
        limit = problem.limits[unit]
        rows = np.concatenate([rows / max(limit, 1e-300), -np.ones((len(rows), 1))], axis=1)
        room: Any = (limit - problem.fixed.get(unit, 0.0)) / max(limit, 1e-300)
        constraints.append(optimize.LinearConstraint(rows, -np.inf, room))
    objective = np.zeros(count + 1)
    objective[-1] = 1
    most: Any = np.concatenate([np.ones(count), [np.inf]])
    bounds = optimize.Bounds(0, most)
    solution = optimize.milp(
        objective, integrality=np.r_[np.ones(count), 0], bounds=bounds, constraints=constraints,
        options={"time_limit": 10.0},
    )  # fmt: skip
    said = f"each of {', '.join(units)} can be met alone, and not all together"
    if solution.x is None:
        return said
    choice = at[solution.x[:-1] > 0.5][:, 1]
    over = [
        f"{unit} is {problem.cost(unit, choice) - limit:,.6g} over {limit:,.6g}"
        for unit, limit in problem.limits.items()
        if problem.cost(unit, choice) > limit
    ]
    return f"{said}; nearest, {' and '.join(over)}. Of {units[0]}, {problem.least_said(units[0])}"
