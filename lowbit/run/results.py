"""What a run found, as reports take it: measurements, by method and seed, and where they come from."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .experiment import FLOAT, Experiment
from .folder import RunFolder


class Measured(NamedTuple):
    """One method.

    Attributes:
        name: of the method.
        results: what was measured, by seed; a seed whose piece failed or was not run is not there.
        errors: by seed, why a piece failed.
    """

    name: str
    results: Mapping[int, Mapping[str, Any]]
    errors: Mapping[int, str]

    def values(self, *keys: str) -> list[float]:
        """Returns one number per seed, or nothing where it was not measured."""
        numbers = []
        for result in self.results.values():
            value: Any = result
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            if isinstance(value, int | float):
                numbers.append(float(value))
        return numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """All of a run.

    Attributes:
        experiment: what was asked.
        folder: where it is kept.
        rows: a row per method, float first.
        data: name of the data set.
        guess: name and metric of the guess without a model, or None.
        minutes: that this run took.
    """

    experiment: Experiment
    folder: RunFolder
    rows: tuple[Measured, ...]
    data: str
    guess: tuple[str, float] | None
    minutes: float

    @property
    def float_row(self) -> Measured:
        """The first row."""
        return next(row for row in self.rows if row.name == FLOAT)

    @property
    def failed(self) -> dict[str, str]:
        """By piece, why it failed."""
        return {f"seed-{seed}/{row.name}": error for row in self.rows for seed, error in row.errors.items()}

    @property
    def made(self) -> dict[str, Any]:
        """Commit, versions and device: what stands beside every number that is kept."""
        return {key: self.folder.environment[key] for key in ("commit", "dirty", "versions", "device")}


def deviation(values: Sequence[float]) -> float | None:
    """Returns the sample standard deviation, or None of one value or none."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
