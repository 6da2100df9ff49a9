"""Drawings for the report, of the first seed: values beside the numbers that their format can hold."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowbit.core import atomic
from lowbit.report import figures, panels
from lowbit.run.folder import RunFolder
from lowbit.run.job import calibration
from lowbit.run.pieces import Piece

from .column import Eval

_NAME = "grids"


def drawing(folder: RunFolder, method: str) -> Path:
    """Returns where a method's drawing is: in the eval's folder, so that one that is lost is made again."""
    return folder.path / "evals" / _NAME / f"{method}.svg"


def grids(*, limit: int = 4) -> Eval:
    """Returns an eval that draws values and their grid, of the ``limit`` operations with most rounding noise."""
    return Eval(_NAME, _Grids(limit), is_together=True)


@dataclasses.dataclass(frozen=True)
class _Grids:
    limit: int

    def __call__(self, pieces: Mapping[str, Piece]) -> Mapping[str, Any]:
        for piece in pieces.values():
            if piece.qstate is not None and piece.plan.quantized:
                batches = [(piece.state, *x) for x in calibration(piece.job)[:2]]
                drawn = panels.panels(piece.fn, piece.bound, piece.params, piece.qstate, batches, limit=self.limit)
                atomic.write_file(drawing(piece.job.folder, piece.method.name), figures.grids(drawn))
        return {}
