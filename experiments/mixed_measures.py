"""How two plans compare on the same inputs, with intervals, and how scores rank beside what was measured. Arrays alone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Compared(NamedTuple):
    """Logits of a plan beside those of float, by input, in float64.

    Attributes:
        signal: sum of squares of float's.
        noise: sum of squared differences.
        kl: divergence, the mean over what an input has several of.
        unit: what a bootstrap draws, from 0.
    """

    signal: np.ndarray
    noise: np.ndarray
    kl: np.ndarray
    unit: np.ndarray

    @property
    def decibels(self) -> float:
        """Signal to noise over all inputs."""
        return float(10 * np.log10(self.signal.sum() / max(self.noise.sum(), 1e-300)))

    @property
    def divergence(self) -> float:
        """The mean over inputs."""
        return float(self.kl.mean())


def per_input(outputs: np.ndarray, before: np.ndarray, unit: np.ndarray) -> Compared:
    """Returns how logits ``[inputs, ..., classes]`` compare with float's."""
    a, b = (np.asarray(x, np.float64) for x in (before, outputs))
    rest = tuple(range(1, a.ndim))
    p, q = (x - x.max(axis=-1, keepdims=True) for x in (a, b))
    p, q = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True)) for x in (p, q))
    kl = np.sum(np.exp(p) * (p - q), axis=-1).reshape(len(a), -1).mean(axis=1)
    return Compared(np.sum(a**2, axis=rest), np.sum((b - a) ** 2, axis=rest), kl, np.asarray(unit))


def gains(mixed: Compared, uniform: Compared, draws: int = 4000, seed: int = 0) -> dict[str, Any]:
    """Returns by how much a plan is better than another on the same inputs, with 95 % intervals.

    Paired bootstraps over inputs, and over units where an input is not one of its own: crops of one photograph are alike.

    Returns:
        ``dB``: what signal to noise gains; ``KL``: by how much the divergence falls; each a number and its intervals.
    """
    made: dict[str, Any] = {}
    for name, unit in (("", np.arange(len(mixed.noise))), ("_units", mixed.unit)):
        counts = np.bincount(unit)
        drawn = np.random.default_rng(seed).integers(0, len(counts), size=(draws, len(counts)))
        sums = [
            np.bincount(unit, weights=x)[drawn].sum(axis=1) for x in (uniform.noise, mixed.noise, uniform.kl - mixed.kl)
        ]
        decibels = 10 * np.log10(sums[0] / np.maximum(sums[1], 1e-300))
        fall = sums[2] / counts[drawn].sum(axis=1)
        for what, values in (("dB", decibels), ("KL", fall)):
            made[f"{what}{name}_low"], made[f"{what}{name}_high"] = map(float, np.quantile(values, [0.025, 0.975]))
    made["dB"] = float(10 * np.log10(uniform.noise.sum() / max(mixed.noise.sum(), 1e-300)))
    made["KL"] = float(np.mean(uniform.kl - mixed.kl))
    made["units"] = len(np.unique(mixed.unit))
    return made


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the correlation of ranks; ties share their mean rank. NaN for fewer than two values, or all alike."""
    if len(one) < 2:
        return float("nan")
    a, b = (_ranked(np.asarray(x, np.float64)) for x in (one, other))
    a, b = a - a.mean(), b - b.mean()
    below = float(np.sqrt(np.sum(a * a) * np.sum(b * b)))
    return float(np.sum(a * b)) / below if below else float("nan")


def _ranked(x: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2.0)[place.reshape(-1)]


def ranks(
    tables: Mapping[str, Sequence[Sequence[float]]], right: Sequence[Sequence[float]]
) -> dict[str, dict[str, float]]:
    """Returns for every table of scores how it ranks beside what was measured: over all, and the mean within a candidate.

    Args:
        tables: by method, ``[operations, candidates]``.
        right: what was measured, alike.
    """
    correlations = {}
    for method, values in tables.items():
        one, other = np.asarray(values, float), np.asarray(right, float)
        within = [spearman(one[:, c], other[:, c]) for c in range(other.shape[1])]
        correlations[method] = {"all": spearman(one.ravel(), other.ravel()), "within": float(np.mean(within))}
    return correlations
