"""Drawings for the report, of the first seed: values beside the numbers that their format can hold."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lowbit.core import atomic
from lowbit.report import figures, panels
from lowbit.run.pieces import Piece, calibration

from .column import Eval

GRIDS = "grids.svg"
"""In a piece's folder."""


def grids(*, limit: int = 4) -> Eval:
    """Returns an eval that draws values and their grid, of the ``limit`` operations with most rounding noise."""
    return Eval("grids", _Grids(limit), is_together=True)


@dataclasses.dataclass(frozen=True)
class _Grids:
    limit: int

    def __call__(self, pieces: Mapping[str, Piece]) -> Mapping[str, Any]:
        for piece in pieces.values():
            if piece.qstate is not None and piece.plan.quantized:
                batches = [(piece.state, x) for x in calibration(piece.job)[:2]]
                drawn = panels.panels(piece.fn, piece.bound, piece.params, piece.qstate, batches, limit=self.limit)
                atomic.write(piece.folder / GRIDS, figures.grids(drawn))
        return {}
