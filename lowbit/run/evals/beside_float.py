"""Outputs beside those of the float function of the same seed: for networks without labels, and beside a metric of labels."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit.run.floats import float_outputs
from lowbit.run.pieces import Piece, promised

from .column import Column, Eval, mean


def beside_float() -> Eval:
    """Returns an eval: signal over noise of the packed model's outputs in dB, and the share of samples with float's class.

    The signal is the float function's outputs for all test inputs, the noise what is executed from the file less those;
    outputs that are the same have no ratio, and none is kept. The class is the largest of the last axis, for outputs
    ``[batch, classes]``; a metric of labels need not be asked for. `lowbit.simulate` must give what is executed where every
    operand is an integer, as for a metric.
    """
    columns = (
        Column("SQNR dB", ("beside_float", "sqnr_db"), mean(".1f")),
        Column("agree %", ("beside_float", "agreement"), mean(".2f")),
    )
    return Eval("beside_float", _BesideFloat(), columns, folders=())


@dataclasses.dataclass(frozen=True)
class _BesideFloat:
    def __call__(self, piece: Piece) -> Mapping[str, Any]:
        if piece.is_float:
            return {}
        beside = compared(piece.executed, float_outputs(piece.job, piece.seed))
        return {"beside_float": beside} | ({} if piece.job.experiment.metric else promised(piece))


def compared(values: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Returns ``sqnr_db`` of outputs, and where they are ``[batch, classes]``, ``agreement`` in percent.

    Example:
        >>> compared(np.array([[0.0, 3.0], [1.0, 0.0]]), np.array([[0.0, 3.0], [0.0, 1.0]]))
        {'sqnr_db': 6.9897, 'agreement': 50.0}
    """
    values, wanted = values.astype(np.float64), wanted.astype(np.float64)
    noise, signal = float(np.sum((values - wanted) ** 2)), float(np.sum(wanted**2))
    result = {"sqnr_db": round(10 * float(np.log10(signal / noise)), 4)} if noise > 0 and signal > 0 else {}
    if wanted.ndim == 2 and wanted.shape[1] > 1:
        result["agreement"] = 100 * float(np.mean(values.argmax(-1) == wanted.argmax(-1)))
    return result
