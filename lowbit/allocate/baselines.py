"""What an exact choice is compared with: one candidate for all, greedy steps, better ends, reverse water-filling."""

from collections.abc import Sequence

import numpy as np

from .problem import Problem


def uniform(problem: Problem, candidate: int) -> np.ndarray | None:
    """Returns one candidate for all decisions, or None where it does not fit them all."""
    return np.full(len(problem.names), candidate) if problem.allowed[:, candidate].all() else None


def best_uniform(problem: Problem) -> np.ndarray | None:
    """Returns the uniform choice within the budget with the lowest score, or None."""
    return _best(problem, [uniform(problem, c) for c in range(len(problem.candidates))])


def head_and_tail(problem: Problem) -> np.ndarray | None:
    """Returns the rule of thumb: one candidate for the first and the last decision, another one for all between.

    The pair within the budget with the lowest score, or None.
    """
    indices = []
    for inner in range(len(problem.candidates)):
        for outer in range(len(problem.candidates)):
            choice = np.full(len(problem.names), inner)
            choice[[0, -1]] = outer
            indices.append(choice)
    return _best(problem, indices)


def descended(problem: Problem) -> np.ndarray | None:
    """Returns the greedy choice: from the lowest scores on, the step that costs the least score for what it saves.

    Savings count in the units that are over their limits, as shares of these; no step costs more in another unit. None
    where it ends over the budget.
    """
    index = np.arange(len(problem.names))
    choice = np.argmin(problem.scores, axis=1)
    while not problem.is_within(choice):
        saved, able = np.zeros_like(problem.scores), problem.allowed.copy()
        for unit, limit in problem.limits.items():
            rows = problem.rows(unit)
            sums = rows[:, index, choice].sum(axis=1) + problem.fixed.get(unit, 0.0)
            worst = int(np.argmax(sums))
            able &= np.all(rows <= rows[:, index, choice][:, :, None], axis=0)
            if sums[worst] > limit:
                saved += (rows[worst, index, choice][:, None] - rows[worst]) / max(abs(limit), 1e-300)
        worse = problem.scores - problem.scores[index, choice][:, None]
        able &= saved > 0
        if not able.any():
            return None
        ratio = np.where(able, worse / np.where(able, saved, 1.0), np.inf)
        at = np.unravel_index(np.argmin(ratio), ratio.shape)
        choice[at[0]] = at[1]
    return choice


def water_levels(variances: Sequence[float], mean_bits: float, sizes: Sequence[float] | None = None) -> np.ndarray:
    """Returns the bits of reverse water-filling: ``max(0, 1/2 log2(v / level))`` with the mean that is asked for.

    Where no bits are cut at 0 these are ``mean + 1/2 log2(v / geometric mean)``, the least sum of ``v 2^(-2 bits)``.

    Args:
        variances: of the components, positive.
        mean_bits: over all elements.
        sizes: how many elements a component has; 1 each by default.

    Raises:
        ValueError: for variances that are not positive, or a negative mean.

    Example:
        >>> water_levels([16.0, 4.0, 1.0, 0.25], 4.0).tolist()
        [5.5, 4.5, 3.5, 2.5]
    """
    half = np.asarray(variances, np.float64)
    if half.ndim != 1 or not half.size or not np.all(half > 0) or not np.all(np.isfinite(half)):
        raise ValueError(f"variances must be positive and finite, got {variances!r:.80}")
    if not mean_bits >= 0:
        raise ValueError(f"mean_bits must not be negative, got {mean_bits!r}")
    half = 0.5 * np.log2(half)
    weights = np.ones_like(half) if sizes is None else np.asarray(sizes, np.float64)
    order = np.argsort(-half, kind="stable")
    total = mean_bits * weights.sum()
    for count in range(len(half), 0, -1):  # the components above the level are the largest ones
        some = order[:count]
        level = (np.sum(weights[some] * half[some]) - total) / np.sum(weights[some])
        if half[some[-1]] >= level or count == 1:
            return np.maximum(half - level, 0.0) * np.isin(np.arange(len(half)), some)
    raise AssertionError("the last component is always above the level")


def water_filled(problem: Problem, bits: np.ndarray, sizes: np.ndarray) -> np.ndarray | None:
    """Returns the choice nearest below reverse water-filling, at the largest mean of bits that is within the budget.

    Args:
        problem: what to choose from.
        bits: of a weight, ``[decisions, candidates]``.
        sizes: elements of the weights of every decision.

    Returns:
        The choice, or None where no mean is within the budget. Variances are fitted to the scores: ``v 4^-bits``.
    """
    scores = np.where(problem.allowed & (problem.scores > 0), problem.scores, np.nan)
    if np.any(np.all(np.isnan(scores), axis=1)):
        return None
    fitted = np.exp(np.nanmean(np.log(scores) + bits * np.log(4.0), axis=1)) / np.maximum(sizes, 1.0)
    indices = []
    for mean in np.linspace(float(bits.min()), float(bits.max()), 61):
        levels = water_levels(np.maximum(fitted, 1e-300).tolist(), float(mean), np.maximum(sizes, 1.0).tolist())
        below = np.where(problem.allowed & (bits <= levels[:, None] + 1e-9), bits, -np.inf)
        least = np.argmin(np.where(problem.allowed, bits, np.inf), axis=1)
        indices.append(np.where(np.isfinite(below.max(axis=1)), below.argmax(axis=1), least))
    return _best(problem, indices)


def _best(problem: Problem, choices: Sequence[np.ndarray | None]) -> np.ndarray | None:
    within = [choice for choice in choices if choice is not None and problem.is_within(choice)]
    return min(within, key=problem.score, default=None)
