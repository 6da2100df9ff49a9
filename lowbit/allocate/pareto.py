"""The whole front: the best choice for every size of a budget."""

import dataclasses
import json
from collections.abc import Callable

import numpy as np

from .milp import Solution, solve
from .problem import Infeasible, Problem


@dataclasses.dataclass(frozen=True)
class FrontPoint:
    """A choice of the front, or a uniform one.

    Attributes:
        cost: in the front's unit.
        score: the sum of scores.
        gap: how far it can be from the best, as a share; NaN of a uniform choice.
        choice: the candidate of every decision.
    """

    cost: float
    score: float
    gap: float
    choice: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Front:
    """The best choices from the cheapest on: costs rise, scores fall. Prints as a table.

    Attributes:
        unit: of the costs.
        names: of the decisions.
        points: the front.
        uniform: the same candidate for all, where it fits them all, cheapest first.
    """

    unit: str
    names: tuple[str, ...]
    points: tuple[FrontPoint, ...]
    uniform: tuple[FrontPoint, ...]

    def json(self) -> str:
        """Returns the front as JSON."""

        def data(point: FrontPoint) -> dict[str, object]:
            return {"cost": point.cost, "score": point.score, "choice": point.choice}

        each = {"points": [data(p) | {"gap": p.gap} for p in self.points], "uniform": [data(p) for p in self.uniform]}
        return json.dumps({"unit": self.unit, "names": self.names, **each}, allow_nan=False)

    def __str__(self) -> str:
        lines = [f"{self.unit:>16}  {'score':>12}  {'gap':>8}  choice"]
        for point in self.points:
            counts = {name: point.choice.count(name) for name in dict.fromkeys(point.choice)}
            said = ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))
            lines.append(f"{point.cost:>16,.6g}  {point.score:>12.5g}  {point.gap:>8.1e}  {said}")
        lines += [f"{p.cost:>16,.6g}  {p.score:>12.5g}  {'':>8}  uniform {p.choice[0]}" for p in self.uniform]
        return "\n".join(lines)


def front(
    problem: Problem,
    unit: str,
    *,
    points: int = 24,
    seconds: float = 10.0,
    progress: Callable[[int], None] | None = None,
) -> Front:
    """Returns the front in one unit; other limits of the problem hold at every point.

    Args:
        problem: what to choose from.
        unit: whose limit moves, from the least to the most that can be.
        points: how many limits are tried, evenly apart.
        seconds: for each.
        progress: called with the number of limits done.
    """
    others = {name: limit for name, limit in problem.limits.items() if name != unit}
    low, high = problem.least(unit), problem.most(unit)
    solutions: list[Solution] = []
    for count, limit in enumerate(np.linspace(low, high, points)):
        try:
            solutions.append(solve(problem.with_limits(**others, **{unit: float(limit)}), seconds=seconds))
        except Infeasible:
            if count == points - 1:
                raise
        if progress is not None:
            progress(count + 1)
    kept: list[FrontPoint] = []
    for solution in sorted(solutions, key=lambda s: (problem.cost(unit, s.choice), s.score)):
        if not kept or solution.score < kept[-1].score:
            kept.append(_point(problem, unit, solution.choice, solution.gap))
    same = [
        _point(problem, unit, np.full(len(problem.names), c), float("nan"))
        for c in range(len(problem.candidates))
        if problem.allowed[:, c].all()
    ]
    return Front(unit, problem.names, tuple(kept), tuple(sorted(same, key=lambda p: p.cost)))


def _point(problem: Problem, unit: str, choice: np.ndarray, gap: float) -> FrontPoint:
    names = tuple(problem.candidates[c] for c in choice)
    return FrontPoint(problem.cost(unit, choice), problem.score(choice), gap, names)
