"""Scores: how much loss is expected of every candidate at every operation. Plain data."""

import dataclasses
import json
import math
from typing import Any

import numpy as np

from lowbit.core import json_text
from lowbit.core.aligned import aligned

from .candidates import name_of


@dataclasses.dataclass(frozen=True)
class Scores:
    """What `lowbit.sensitivity` found; `lowbit.allocate` takes any other numbers as well.

    Attributes:
        paths: of the operations, in program order.
        candidates: rule texts or quantizers.
        values: by operation, the score of every candidate; infinite where it does not fit.
        method: how they were found.
        seconds: that it took.
    """

    paths: tuple[str, ...]
    candidates: tuple[Any, ...]
    values: tuple[tuple[float, ...], ...]
    method: str = ""
    seconds: float = 0.0

    def __post_init__(self):
        if len(self.values) != len(self.paths) or any(len(row) != len(self.candidates) for row in self.values):
            raise ValueError(
                f"values must have a row for each of {len(self.paths)} paths, with a number for each of "
                f"{len(self.candidates)} candidates"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates as text."""
        return tuple(name_of(candidate) for candidate in self.candidates)

    def array(self) -> np.ndarray:
        """Returns the values as float64 ``[operations, candidates]``."""
        return np.asarray(self.values, np.float64).reshape(len(self.paths), len(self.candidates))

    def json(self) -> str:
        """Returns the table as JSON; what does not fit is null."""
        rows = [[value if math.isfinite(value) else None for value in row] for row in self.values]
        return json.dumps(
            {"method": self.method, "paths": self.paths, "candidates": self.names, "values": rows, "seconds": self.seconds},
            allow_nan=False,
        )  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> "Scores":
        """Returns what `json` wrote.

        Raises:
            ValueError: for what is no such text.
        """
        try:
            data = json_text.parse_json(text)
            rows = tuple(tuple(math.inf if v is None else float(v) for v in row) for row in data["values"])
            return cls(tuple(data["paths"]), tuple(data["candidates"]), rows, data["method"], float(data["seconds"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"text must be what Scores.json wrote: {error}") from None

    def __str__(self) -> str:
        head = ["operation", *self.names]
        lines = [head, *([p, *(f"{v:.3e}" for v in row)] for p, row in zip(self.paths, self.values, strict=True))]
        return "\n".join(aligned(lines))
