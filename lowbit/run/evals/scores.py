"""Numbers of outputs beside float's, whatever they are: for networks whose score is no metric of labels alone."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lowbit.run.floats import float_outputs
from lowbit.run.pieces import Piece, promised

from .column import Column, Eval, mean

Scoring = Callable[[np.ndarray, np.ndarray, np.ndarray], Mapping[str, float]]
"""``of(outputs, outputs of float, labels) -> numbers``, of all test samples."""


def scores(of: Scoring, name: str, *, digits: int = 1) -> Eval:
    """Returns an eval: named numbers of what is executed from the file, of float too, kept under ``scores``.

    Args:
        of: what computes them; see `Scoring`. It may bound a number by `bootstrap`.
        name: of the number that the table shows.
        digits: of it.
    """
    return Eval("scores", _Scores(of), (Column(name, ("scores", name), mean(f".{digits}f")),), folders=())


@dataclasses.dataclass(frozen=True)
class _Scores:
    of: Scoring

    def __call__(self, piece: Piece) -> Mapping[str, Any]:
        scores = self.of(piece.executed, float_outputs(piece.job, piece.seed), piece.job.data.test.labels)
        result = {"scores": {name: float(value) for name, value in scores.items()}}
        return result if piece.is_float or piece.job.experiment.metric else result | promised(piece)


def bootstrap(values: np.ndarray, unit: np.ndarray, *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of the mean of ``values`` by a bootstrap over units (photographs, sentences).

    Args:
        values: ``[samples]``.
        unit: the unit of every sample, from 0.
        draws: of the bootstrap.
        seed: of the draws.
    """
    sums, counts = np.bincount(unit, weights=values), np.bincount(unit)
    drawn = np.random.default_rng(seed).integers(0, len(counts), size=(draws, len(counts)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
