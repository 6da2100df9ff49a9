"""Interactions: what two operations cost together beyond the sum of both, and the exact choice with such terms.

For few operations (30 at most) and one narrow candidate beside a wide one: ``sum_l S_l x_l + sum_{l<m} P_lm x_l x_m``, ``x_l`` whether
operation ``l`` is narrow. Products are made linear: ``y <= x_l``, ``y <= x_m``, ``y >= x_l + x_m - 1``.

Reference: CoopQ (arXiv 2509.15455); here pairs are measured one by one, not by Shapley values.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lowbit.calibrate.fold import calibrate
from lowbit.interpret.trace import Model
from lowbit.packed import arguments
from lowbit.plan.rows import Plan

from . import measures
from .candidates import candidates_of, decided
from .masked import one_at_a_time
from .problem import Infeasible

MOST = 30


def interactions(
    fn: Model,
    plan: Plan,
    params: Any,
    batches: Iterable[Any],
    *,
    candidate: Any,
    measure: Callable[[Any, Any], Any] = measures.mse,
) -> np.ndarray:
    """Returns ``[operations, operations]``: alone on the diagonal, and beside it what a pair costs beyond both alone.

    Args:
        fn: the function of the plan.
        plan: from `lowbit.bind`, not full-integer; at most 30 operations with quantized weights, none of them shared.
        params: float parameters.
        batches: argument tuples.
        candidate: a rule that fits them all.
        measure: from the float result and another to a scalar.

    Raises:
        ValueError: for more operations, shared weights, or a candidate that does not fit.
    """
    rows = decided(plan)
    if len(rows) > MOST or plan.is_full_integer or len({row.weight.key for row in rows if row.weight}) < len(rows):
        raise ValueError(
            f"plan must be an ordinary one with at most {MOST} weights, none of them shared, got {len(rows)}"
        )
    (offered,) = candidates_of(plan, (candidate,))
    if missing := [row.path for row in rows if row.path not in offered.fits]:
        raise ValueError(f"candidate {offered.name!r} does not fit {', '.join(missing)}")
    given = [arguments.batch_of(batch, i) for i, batch in enumerate(arguments.iterated(batches))]
    qstate = calibrate(fn, offered.plan, params, given)
    both = list(itertools.combinations(range(len(rows)), 2))
    sets = [*((i,) for i in range(len(rows))), *both]
    masks = {row.path: np.zeros(len(sets), np.float32) for row in offered.plan.quantized}
    for k, some in enumerate(sets):
        for i in some:
            masks[rows[i].path][k] = 1.0
    run = one_at_a_time(fn, offered.plan, measure)
    cost = np.mean([np.asarray(run(params, qstate, masks, batch, {}), np.float64) for batch in given], axis=0)
    pairs = np.diag(cost[: len(rows)])
    for (i, j), value in zip(both, cost[len(rows) :], strict=True):
        pairs[i, j] = pairs[j, i] = value - cost[i] - cost[j]
    return pairs


def solve_pairs(pairs: np.ndarray, saved: np.ndarray, needed: float) -> tuple[np.ndarray, float]:
    """Returns which operations are narrow so that enough is saved at the least cost, and that cost. Exact.

    Args:
        pairs: of `interactions`.
        saved: what an operation saves by being narrow.
        needed: how much must be saved.

    Raises:
        Infeasible: if all together save less.

    Example:
        >>> pairs = np.array([[1.0, 5.0, 0.0], [5.0, 1.5, 0.0], [0.0, 0.0, 2.0]])
        >>> narrow, cost = solve_pairs(pairs, np.ones(3), 2.0)
        >>> narrow.tolist(), cost
        ([True, False, True], 3.0)
    """
    from scipy import optimize  # here: a quarter of the time that importing lowbit would take

    n = len(saved)
    if n > MOST or pairs.shape != (n, n):
        raise ValueError(f"pairs must be [n, n] for the n <= {MOST} operations of saved, got {pairs.shape} and {n}")
    if float(np.sum(saved)) < needed:
        raise Infeasible(f"all {n} operations together save {np.sum(saved):,.6g}, and {needed:,.6g} are needed")
    index = list(itertools.combinations(range(n), 2))
    size = n + len(index)
    both = np.zeros((3 * len(index), size))
    upper = np.zeros(3 * len(index))
    for k, (i, j) in enumerate(index):
        both[3 * k, [i, n + k]] = -1, 1
        both[3 * k + 1, [j, n + k]] = -1, 1
        both[3 * k + 2, [i, j, n + k]] = 1, 1, -1
        upper[3 * k + 2] = 1
    objective = np.r_[np.diag(pairs), [pairs[i, j] for i, j in index]]
    scale = float(np.max(np.abs(objective), initial=0.0)) or 1.0
    limits: Any = upper
    solution = optimize.milp(
        objective / scale * 1e4, integrality=np.ones(size), bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(both, -np.inf, limits),
            optimize.LinearConstraint(np.r_[saved, np.zeros(len(index))][None], needed, np.inf),
        ],
        options={"mip_rel_gap": 0.0},
    )  # fmt: skip
    if solution.x is None:
        raise Infeasible(f"no choice that saves {needed:,.6g} was found")
    narrow = solution.x[:n] > 0.5
    x = narrow.astype(float)
    return narrow, float(np.diag(pairs) @ x + sum(pairs[i, j] * x[i] * x[j] for i, j in index))
