"""What an allocation chooses from: a candidate for every decision, scores and costs. Numbers alone, no model."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np


class Infeasible(ValueError):
    """No choice is within the budget."""


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Choose a candidate for every decision: the sum of scores is least, and every cost within its limit.

    Attributes:
        names: of the decisions.
        candidates: their names.
        scores: ``[decisions, candidates]``, the loss that is expected; infinite where a candidate does not fit.
        costs: by unit, ``[decisions, candidates]``, or ``[moments, decisions, candidates]`` where the largest of several
            sums counts.
        limits: by unit.
        fixed: by unit, what is paid whatever is chosen; 0 where there is none.
    """

    names: tuple[str, ...]
    candidates: tuple[str, ...]
    scores: np.ndarray
    costs: Mapping[str, np.ndarray]
    limits: Mapping[str, float]
    fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        shape = (len(self.names), len(self.candidates))
        if self.scores.shape != shape:
            raise ValueError(f"scores must have the shape {shape} (decisions, candidates), got {self.scores.shape}")
        for unit, cost in self.costs.items():
            if cost.shape[-2:] != shape or cost.ndim not in (2, 3) or not np.all(np.isfinite(cost)):
                raise ValueError(f"costs[{unit!r}] must be finite and of the shape {shape}, got {cost.shape}")
        unknown = [unit for unit in self.limits if unit not in self.costs]
        if unknown:
            raise ValueError(f"limits of {', '.join(unknown)}, but costs are known of {', '.join(self.costs)}")
        if np.any(np.isnan(self.scores)) or np.any(np.isneginf(self.scores)):
            at = np.argwhere(np.isnan(self.scores) | np.isneginf(self.scores))[0]
            raise ValueError(
                f"scores must be numbers: that of {self.names[at[0]]!r} with {self.candidates[at[1]]!r} is "
                f"{self.scores[tuple(at)]}"
            )
        none = [name for name, fits in zip(self.names, self.allowed, strict=True) if not fits.any()]
        if none:
            raise ValueError(f"no candidate of {', '.join(self.candidates)} fits {', '.join(none)}")

    @property
    def allowed(self) -> np.ndarray:
        """Whether a candidate fits a decision: ``[decisions, candidates]``."""
        return np.isfinite(self.scores)

    def rows(self, unit: str) -> np.ndarray:
        """Returns the costs of a unit as ``[moments, decisions, candidates]``."""
        cost = self.costs[unit]
        return cost[None] if cost.ndim == 2 else cost

    def score(self, choice: Sequence[int] | np.ndarray) -> float:
        """Returns the sum of scores of a choice."""
        return float(np.sum(self.scores[np.arange(len(self.names)), np.asarray(choice)]))

    def cost(self, unit: str, choice: Sequence[int] | np.ndarray) -> float:
        """Returns what a choice costs in a unit."""
        rows = self.rows(unit)[:, np.arange(len(self.names)), np.asarray(choice)]
        return float(np.max(np.sum(rows, axis=1), initial=-np.inf) + self.fixed.get(unit, 0.0))

    def totals(self, choice: Sequence[int] | np.ndarray) -> dict[str, float]:
        """Returns what a choice costs, in every unit."""
        return {unit: self.cost(unit, choice) for unit in self.costs}

    def is_within(self, choice: Sequence[int] | np.ndarray) -> bool:
        """Whether a choice fits its decisions and the budget; sums of floats are allowed their rounding."""
        if not np.all(self.allowed[np.arange(len(self.names)), np.asarray(choice)]):
            return False
        return all(self.cost(unit, choice) <= limit + 1e-12 * abs(limit) for unit, limit in self.limits.items())

    def least(self, unit: str) -> float:
        """Returns the least that any choice can cost in a unit: of several moments, a bound."""
        rows = np.where(self.allowed, self.rows(unit), np.inf)
        return float(np.max(np.sum(np.min(rows, axis=2), axis=1)) + self.fixed.get(unit, 0.0))

    def most(self, unit: str) -> float:
        """Returns the most that any choice can cost in a unit."""
        rows = np.where(self.allowed, self.rows(unit), -np.inf)
        return float(np.max(np.sum(np.max(rows, axis=2), axis=1)) + self.fixed.get(unit, 0.0))

    def with_limits(self, **limits: float) -> "Problem":
        """Returns the problem under other limits."""
        return dataclasses.replace(self, limits=limits)

    def check_reachable(self) -> None:
        """Raises where a limit lies below the least that can be.

        Raises:
            Infeasible: by how much, and which decisions take the most of it at their cheapest.
        """
        wrong = []
        for unit, limit in self.limits.items():
            least = self.least(unit)
            if least > limit + 1e-12 * abs(limit):
                wrong.append(f"{unit} <= {limit:,.6g} is {least - limit:,.6g} below {self.least_said(unit)}")
        if wrong:
            raise Infeasible("the budget cannot be met: " + "; ".join(wrong))

    def least_said(self, unit: str) -> str:
        """Returns a sentence about the least that a unit can be, and what takes it."""
        rows = np.where(self.allowed, self.rows(unit), np.inf)
        each = np.min(rows, axis=2)
        each = each[np.argmax(each.sum(axis=1))]
        first = np.argsort(-each, kind="stable")[:5]
        parts = [f"{self.names[d]} ({each[d]:,.6g})" for d in first if each[d] > 0]
        if self.fixed.get(unit):
            parts.append(f"what no candidate changes ({self.fixed[unit]:,.6g})")
        return f"the least possible, {self.least(unit):,.6g}, of which the most is taken by {', '.join(parts)}"
