"""`allocate` and `pareto`: from scores and a budget to a plan, or to all plans that are the best of their size."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lowbit.interpret.with_quantizers import with_quantizers
from lowbit.packed import arguments
from lowbit.plan.rows import Plan, Row
from lowbit.targets.refusals import check
from lowbit.targets.table import lookup

from . import baselines, milp
from . import pareto as fronts
from .budget import Budget
from .candidates import candidates_of, decided, quantizers_of
from .prices import Times, prices
from .problem import Problem
from .scores import Scores
from .ties import KINDS, tied

TIES = ("weights", "inputs")


@dataclasses.dataclass(frozen=True)
class Line:
    """One choice in the table of an `Allocation`: its name, its score (NaN: none within the budget) and what it costs."""

    name: str
    score: float
    costs: dict[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Allocation:
    """What was chosen, beside what simpler rules choose; prints as a table.

    Attributes:
        plan: the plan.
        budget: what it was to fit.
        choice: the candidate of every decided operation, by path.
        groups: operations that were decided together.
        gap: how far the score can be from the best at most, as a share; 0: proven to be the best.
        seconds: that the solver took.
        lines: the choice first, then the baselines.
    """

    plan: Plan
    budget: Budget
    choice: dict[str, str]
    groups: tuple[tuple[str, ...], ...]
    gap: float
    seconds: float
    lines: tuple[Line, ...]

    def __str__(self) -> str:
        units = list(self.budget.limits)
        said = [f"budget: {self.budget}; optimality gap {self.gap:.1e}, {self.seconds:.2f} s"]
        said.append("  ".join([f"{'choice':24}", f"{'score':>12}", *(f"{unit:>16}" for unit in units)]))
        for line in self.lines:
            score = f"{'none fits':>12}" if math.isnan(line.score) else f"{line.score:12.5g}"
            cells = [f"{line.costs[u]:16,.6g}" if u in line.costs else f"{'-':>16}" for u in units]
            said.append("  ".join([f"{line.name:24}", score, *cells]))
        return "\n".join(said)


@dataclasses.dataclass(frozen=True, eq=False)
class Posed:
    """What is asked: the operations, which are decided together, the problem, and bits and elements of every decision."""

    rows: tuple[Row, ...]
    groups: tuple[tuple[str, ...], ...]
    problem: Problem
    bits: np.ndarray
    sizes: np.ndarray


def posed(
    plan: Plan,
    scores: Any,
    limits: dict[str, float],
    target: Any,
    ties: Sequence[str],
    groups: Any,
    times: Times | None,
) -> Posed:
    """Returns the problem of a plan, its scores and limits; arguments as `allocate`."""
    arguments.check(plan=plan)
    if not isinstance(scores, Scores):
        raise TypeError(f"scores must be of lowbit.sensitivity, got {scores!r:.40} ({type(scores).__name__})")
    rows = decided(plan)
    if scores.paths != tuple(row.path for row in rows):
        missing = sorted({row.path for row in rows} ^ set(scores.paths))
        raise ValueError(f"scores are of another plan: they differ in {', '.join(missing[:5]) or 'the order'}")
    if target is not None and not isinstance(target, str):
        raise TypeError(f"target must be the name of a target, got {target!r:.40} ({type(target).__name__})")
    candidates = candidates_of(plan, scores.candidates, target)
    values = scores.array()
    at = np.argwhere(np.isnan(values) | np.isneginf(values))
    if len(at):
        r, c = at[0]
        raise ValueError(
            f"scores of {rows[r].path!r} with {candidates[c].name!r} are {values[r, c]}: measure them again"
        )
    fits = np.array([[row.path in each.fits for each in candidates] for row in rows])
    values = np.where(fits, values, np.inf)
    for r, row in enumerate(rows):
        if not np.isfinite(values[r]).any():
            where = f" on {target}" if target is not None else ""
            raise ValueError(f"no candidate of {', '.join(scores.names)} fits {row.path!r}{where}")
    if "milliseconds" in limits and times is None:
        from .latency import measured

        times = measured(rows, candidates)
    differ = len({quantizers_of(rows[0], each).input for each in scores.candidates}) > 1
    if isinstance(ties, str) or not isinstance(ties, Sequence):
        raise TypeError(f"ties must be a list of {', '.join(KINDS)}, got {ties!r:.40}")
    kinds = ("weights", *(kind for kind in ties if kind != "inputs" or differ))
    tied_groups = tied(plan, rows, kinds, groups)
    place = {row.path: i for i, row in enumerate(rows)}
    member = np.zeros((len(tied_groups), len(rows)))
    for g, group in enumerate(tied_groups):
        member[g, [place[path] for path in group]] = 1
    sums = np.stack([values[[place[path] for path in group]].sum(axis=0) for group in tied_groups])
    for g, group in enumerate(tied_groups):
        if not np.isfinite(sums[g]).any():
            raise ValueError(
                f"ties contradict the candidates: {', '.join(group)} must have one, and none of {', '.join(scores.names)} "
                f"fits all of them"
            )
    costs, fixed = prices(plan, rows, candidates, target, times)
    problem = Problem(
        tuple(" + ".join(group) for group in tied_groups), scores.names, sums,
        {unit: np.einsum("gr,...rc->...gc", member, cost) for unit, cost in costs.items()}, limits, fixed,
    )  # fmt: skip
    sizes = member @ np.array([math.prod(row.weight.operand.shape) if row.weight else 0 for row in rows], np.float64)
    shapes = {row.weight.key: row.weight.operand.shape for row in rows if row.weight is not None}
    total = sum(math.prod(shape) for shape in shapes.values())
    bits = (member @ costs["bits"]) * total / np.maximum(sizes, 1)[:, None]
    return Posed(rows, tied_groups, problem, bits, sizes)


def check_budget(
    plan: Plan, candidates: Sequence[Any], budget: Budget, *, target: str | None = None, ties: Sequence[str] = TIES
) -> None:
    """Raises what `allocate` would of candidates, target and budget, before anything is scored; times are not looked at.

    Raises:
        ValueError: for an unknown target, an operation that no candidate fits, or a budget below the least that can be.
    """
    rows = decided(plan)
    nothing = Scores(tuple(row.path for row in rows), tuple(candidates), ((0.0,) * len(candidates),) * len(rows))
    limits = {unit: limit for unit, limit in budget.limits.items() if unit != "milliseconds"}
    posed(plan, nothing, limits, target, ties, (), None).problem.check_reachable()


def allocation(
    plan: Plan,
    scores: Scores,
    *,
    budget: Budget,
    target: str | None = None,
    ties: Sequence[str] = TIES,
    groups: Sequence[Sequence[str]] = (),
    times: Times | None = None,
    seconds: float = 60.0,
) -> Allocation:
    """Returns the plan of `allocate` with the optimality gap, and beside it what simpler rules choose."""
    if not isinstance(budget, Budget):
        raise TypeError(f"budget must be of lowbit.budget, got {budget!r:.40} ({type(budget).__name__})")
    asked = posed(plan, scores, dict(budget.limits), target, ties, groups, times)
    problem = asked.problem
    solution = milp.solve(problem, seconds=seconds)
    index = {path: int(solution.choice[g]) for g, group in enumerate(asked.groups) for path in group}
    new_plan = plan_of(plan, scores, index)
    if target is not None:
        check(new_plan, lookup((target,)))
    if solution.gap > 1e-6:
        warnings.warn(
            f"the allocation is proven to be within {100 * solution.gap:.2g} % of the best only", stacklevel=3
        )
    others = {
        "uniform": baselines.best_uniform(problem),
        "greedy": baselines.descended(problem),
        "head and tail": baselines.head_and_tail(problem),
        "reverse water-filling": baselines.water_filled(problem, asked.bits, asked.sizes),
    }
    lines = [Line("exact", solution.score, problem.totals(solution.choice))]
    for name, choice in others.items():
        cost = {} if choice is None else problem.totals(choice)
        lines.append(Line(name, math.nan if choice is None else problem.score(choice), cost))
    names = {path: scores.names[c] for path, c in index.items()}
    return Allocation(new_plan, budget, names, asked.groups, solution.gap, solution.seconds, tuple(lines))


def plan_of(plan: Plan, scores: Scores, index: dict[str, int]) -> Plan:
    """Returns the plan with the candidate of every path in ``index``."""

    def choose(row: Row) -> Any:
        return quantizers_of(row, scores.candidates[index[row.path]]) if row.path in index else None

    return with_quantizers(plan, choose)


def allocate(
    plan: Plan,
    scores: Scores,
    *,
    budget: Budget,
    target: str | None = None,
    ties: Sequence[str] = TIES,
    groups: Sequence[Sequence[str]] = (),
    times: Times | None = None,
    seconds: float = 60.0,
) -> Plan:
    """Returns the plan whose candidates have the least sum of scores within the budget: an exact integer program.

    Operations without a quantized weight stay as they are. `lowbit.allocate.choose.allocation` returns the same plan with the
    optimality gap and a table of baselines; a gap that is not closed in time is a warning.

    Args:
        plan: from `lowbit.bind`; operations with a quantized weight are decided.
        scores: of `lowbit.sensitivity` for this plan.
        budget: of `lowbit.budget`: every limit holds.
        target: only candidates that this target holds are chosen (`lowbit.targets.table.TARGETS`).
        ties: what has one candidate: ``"weights"`` (operations that share one, which cannot do without), ``"inputs"`` (that read
            one value, where candidates differ in inputs: query, key and value), ``"sums"`` (whose results are added).
        groups: further groups, of globs over paths.
        times: ``{path: {candidate: milliseconds}}``; where the budget asks for them and none are given, they are read from this
            machine's table (``lowbit bench operations``), and what it lacks is measured.
        seconds: after which the best choice so far is taken.

    Returns:
        An ordinary plan, checked as `lowbit.bind` checks. Calibrate it anew, or carry a state over by `lowbit.rebind`.

    Raises:
        TypeError: for arguments of another type.
        ValueError: for a budget that cannot be met (by how much, and what takes it), scores of another plan or NaN, an
            operation that no candidate fits, ties that contradict, or an unknown target.

    Example:
        >>> import jax.numpy as jnp
        >>> import lowbit as lb
        >>> params, x = {"a": jnp.eye(8), "b": jnp.linspace(-1, 1, 64).reshape(8, 8)}, jnp.ones((2, 8))
        >>> fn = lambda p, x: x @ p["a"] @ p["b"]
        >>> plan = lb.bind(fn, {"**": "w8"}, params, x)
        >>> scores = Scores(("a", "b"), ("w4", "w8"), ((0.0, 0.0), (0.5, 0.1)))
        >>> [row.weight.spec.format.bits for row in allocate(plan, scores, budget=lb.budget(bits=10.0))]
        [4, 8]
    """
    return allocation(
        plan, scores, budget=budget, target=target, ties=ties, groups=groups, times=times, seconds=seconds
    ).plan


def pareto(
    plan: Plan,
    scores: Scores,
    *,
    unit: str = "bytes",
    budget: Budget | None = None,
    points: int = 24,
    target: str | None = None,
    ties: Sequence[str] = TIES,
    groups: Sequence[Sequence[str]] = (),
    times: Times | None = None,
    seconds: float = 10.0,
    progress: Callable[[int], None] | None = None,
) -> fronts.Front:
    """Returns the whole front: the least sum of scores for every size of a budget in one unit, and uniform choices beside it.

    Args:
        plan: as in `allocate`.
        scores: as in `allocate`.
        unit: which limit moves, from the least to the most that can be.
        budget: limits in other units, which hold at every point.
        points: how many limits are tried, evenly apart.
        target: as in `allocate`.
        ties: as in `allocate`.
        groups: as in `allocate`.
        times: as in `allocate`.
        seconds: for each point.
        progress: called with the number of points done.

    Returns:
        `lowbit.allocate.pareto.Front`: prints as a table, ``.json()``; `lowbit.report.allocation.pareto_front` plots it.

    Raises:
        TypeError: for arguments of another type.
        ValueError: as `allocate`, or for an unknown unit.
    """
    arguments.check(progress=progress)
    if budget is not None and not isinstance(budget, Budget):
        raise TypeError(f"budget must be of lowbit.budget or None, got {budget!r:.40} ({type(budget).__name__})")
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise ValueError(f"points must be a number of at least 2, got {points!r}")
    limits = dict(budget.limits) if budget is not None else {}
    asked = posed(
        plan, scores, limits | ({unit: math.inf} if unit == "milliseconds" else {}), target, ties, groups, times
    )
    if unit not in asked.problem.costs:
        raise ValueError(f"unit must be one of {', '.join(asked.problem.costs)}, got {unit!r}")
    return fronts.front(asked.problem.with_limits(**limits), unit, points=points, seconds=seconds, progress=progress)
