"""Evolution: choices within a budget by what they measure, where the sum of scores does not say it.

An operation's loss depends on what the others lose, and a smaller error may not be the smaller loss; a search that measures whole
choices needs neither to be so. It starts from the best sum of scores.

Reference: Sieberling, Kuznedelev, Kurtic, Alistarh, EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search,
2024, https://arxiv.org/abs/2410.14649, Algorithm 1: one parent, ``offspring`` children, each of ``min(a, b)`` switches of level, a
and b drawn from 1 to 3; selection in stages, on more data for fewer.

Differs from the paper: a switch makes one decision cheaper and another dearer, by a level each, and only has to stay within the
budget: levels need not cost alike. Selection is by batches.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.core.paths import flatten
from lowbit.interpret.trace import Model
from lowbit.packed import arguments
from lowbit.plan.rows import Plan

from . import measures, milp
from .budget import Budget
from .candidates import Candidate, candidates_of
from .choose import TIES, plan_of, posed
from .problem import Problem
from .scores import Scores

MUTATIONS = 3
"""Switches of a child, at most."""


@dataclasses.dataclass(frozen=True, eq=False)
class Evolved:
    """What evolution found.

    Attributes:
        plan: the plan.
        choice: the candidate of every decided operation, by path.
        start: the measure of the best sum of scores, over all batches.
        measured: of what was found.
        history: of the best so far, after every generation.
    """

    plan: Plan
    choice: dict[str, str]
    start: float
    measured: float
    history: tuple[float, ...]


def search(
    problem: Problem,
    start: np.ndarray,
    fitness: Callable[[np.ndarray, int], float],
    *,
    stages: Sequence[tuple[int, int]],
    generations: int,
    offspring: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, list[float]]:
    """Returns the best choice found within the budget, and its fitness at first and after every generation.

    Args:
        problem: candidates, costs and limits; scores say only what fits.
        start: a choice within the budget.
        fitness: ``(choice, batches) -> measure`` on so many first batches; less is better.
        stages: ``(survivors, batches)``, one after the other: so many of the children are left after a look at so many batches. The
            last leaves one, and the parent is measured on as many.
        generations: how many.
        offspring: children of each.
        seed: of what is drawn.
        progress: called with the number of generations done.
    """
    if not problem.is_within(start):
        raise ValueError("start must be a choice within the budget")
    draw = np.random.default_rng(seed)
    order = _levels(problem)
    parent, known = np.asarray(start), fitness(np.asarray(start), stages[-1][1])
    history = [known]
    for done in range(generations):
        children = [child for _ in range(offspring) if (child := _child(problem, parent, order, draw)) is not None]
        children = list({child.tobytes(): child for child in children}.values())
        values: list[float] = []
        for survivors, batches in stages:
            values = [fitness(child, batches) for child in children]
            best = np.argsort(values, kind="stable")[:survivors]
            children, values = [children[i] for i in best], [values[i] for i in best]
        if values and values[0] < known:
            parent, known = children[0], values[0]
        history.append(known)
        if progress is not None:
            progress(done + 1)
    return parent, history


def _levels(problem: Problem) -> list[np.ndarray]:
    """The candidates that fit every decision, the cheapest first, by the first unit that is limited."""
    unit = next(iter(problem.limits), next(iter(problem.costs)))
    cost = problem.rows(unit).max(axis=0)
    return [
        np.array([c for c in np.argsort(cost[d], kind="stable") if problem.allowed[d, c]], int)
        for d in range(len(problem.names))
    ]


def _child(
    problem: Problem, parent: np.ndarray, order: Sequence[np.ndarray], draw: np.random.Generator
) -> np.ndarray | None:
    """A choice that differs from its parent by a few switches, within the budget; None where none was found."""
    for _ in range(100):
        child = parent.copy()
        for _ in range(min(draw.integers(1, MUTATIONS + 1), draw.integers(1, MUTATIONS + 1))):
            for step in (-1, 1):
                d = int(draw.integers(len(child)))
                at = int(np.flatnonzero(order[d] == child[d])[0]) + step
                if 0 <= at < len(order[d]):
                    child[d] = order[d][at]
        if problem.is_within(child) and (child != parent).any():
            return child
    return None


def evolve(
    fn: Model,
    plan: Plan,
    params: Any,
    batches: Iterable[Any],
    scores: Scores,
    *,
    budget: Budget,
    measure: Callable[[Any, Any], Any] = measures.kl,
    target: str | None = None,
    ties: Sequence[str] = TIES,
    groups: Sequence[Sequence[str]] = (),
    generations: int = 30,
    offspring: int = 16,
    seed: int = 0,
    seconds: float = 60.0,
    progress: Callable[[int], None] | None = None,
) -> Evolved:
    """Returns the best plan within the budget that evolution finds, by what whole choices measure on data.

    Weights alone: every candidate's rounding is computed once, and ``fn`` is compiled once for all choices.

    Args:
        fn: the function of the plan.
        plan: as in `lowbit.allocate`; inputs in float.
        params: float parameters.
        batches: argument tuples, kept in memory; children are looked at on one, the better ones on a quarter, the best on all.
        scores: of `lowbit.sensitivity`: their best sum is where evolution begins.
        budget: of `lowbit.budget`.
        measure: from the float result and another to a scalar: `lowbit.allocate.measures.kl`, ``mse`` or another.
        target: as in `lowbit.allocate`.
        ties: as in `lowbit.allocate`.
        groups: as in `lowbit.allocate`.
        generations: how many.
        offspring: children of each.
        seed: of what is drawn.
        seconds: for the start.
        progress: called with the number of generations done.

    Raises:
        TypeError: for arguments of another type.
        ValueError: as `lowbit.allocate`; for quantized inputs, weights that are computed, or a measure that is not finite.
    """
    arguments.check(fn=fn, plan=plan, params=params, progress=progress)
    if not isinstance(budget, Budget):
        raise TypeError(f"budget must be of lowbit.budget, got {budget!r:.40} ({type(budget).__name__})")
    asked = posed(plan, scores, dict(budget.limits), target, ties, groups, None)
    offered = candidates_of(plan, scores.candidates, target)
    given = [arguments.batch_of(batch, i) for i, batch in enumerate(arguments.iterated(batches))]
    if not given:
        raise ValueError("batches is empty: evolution measures on at least one")
    errors = _errors(plan, params, offered)
    group_of = {path: g for g, group in enumerate(asked.groups) for path in group}
    place = {row.weight.key: group_of[row.path] for row in reversed(asked.rows) if row.weight is not None}
    paths, _, tree = flatten(params)

    @jax.jit
    def measured(params: Any, errors: Any, choice: Any, args: Any) -> Any:
        leaves = jax.tree.leaves(params)
        moved = [
            x + errors[path][choice[place[path]]] if path in errors else x
            for path, x in zip(paths, leaves, strict=True)
        ]
        return measure(fn(params, *args), fn(jax.tree.unflatten(tree, moved), *args))

    losses: dict[tuple[bytes, int], float] = {}

    def fitness(choice: np.ndarray, count: int) -> float:
        name = choice.tobytes(), count
        if name not in losses:
            each = [float(measured(params, errors, jnp.asarray(choice), args)) for args in given[:count]]
            losses[name] = float(np.mean(each))
            if not np.isfinite(losses[name]):
                raise ValueError(f"measure gave {losses[name]} for a choice: it must be finite")
        return losses[name]

    start = np.asarray(milp.solve(asked.problem, seconds=seconds).choice, int)
    stages = [(max(offspring // 4, 1), 1), (2, max(len(given) // 4, 1)), (1, len(given))]
    best, history = search(
        asked.problem,
        start,
        fitness,
        stages=stages,
        generations=generations,
        offspring=offspring,
        seed=seed,
        progress=progress,
    )
    index = {path: int(best[g]) for path, g in group_of.items()}
    new_plan = plan_of(plan, scores, index)
    names = {path: scores.names[c] for path, c in index.items()}
    return Evolved(new_plan, names, history[0], history[-1], tuple(history))


def _errors(plan: Plan, params: Any, offered: Sequence[Candidate]) -> dict[str, Any]:
    """What every candidate adds to every weight: ``[candidates, *shape]``; zeros where one does not fit."""
    leaves = dict(zip(*flatten(params)[:2], strict=True))
    by_path: dict[str, list[Any]] = {}
    for candidate in offered:
        for row in candidate.plan.quantized:
            weight = row.weight
            if weight is None or any(site.spec is not None for site in row.sites if not site.is_weight):
                raise ValueError(
                    f"{row.path}: evolution is for weights with inputs in float; leave out the a part of rules"
                )
            if weight.kind != "leaf":
                raise ValueError(f"{row.path}: evolution is for parameters, and its weight is {weight.kind}")
    for candidate in offered:
        sites = candidate.plan.leaf_sites()
        for key in plan.leaf_sites():
            x = leaves[key]
            error = jnp.zeros_like(x)
            if key in sites and (quantizer := sites[key].quantizer) is not None:
                state = quantizer.init(sites[key].operand, {"values": x}, jax.random.key(0))
                error = quantizer.fake(state, x, sites[key].operand) - x
            by_path.setdefault(key, []).append(error)
    return {key: jnp.stack(each) for key, each in by_path.items()}
