"""What rounding takes from the weights themselves, whatever data would make of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from lowbit.core.paths import flatten
from lowbit.run.pieces import Piece

from .column import Column, Eval, mean


def weight_error() -> Eval:
    """Returns an eval: the squared error of all packed weights that are parameters over the squares of their floats."""
    column = Column(
        "weight error / 1000", ("weight_error",), lambda values, base: mean(".2f")([1e3 * v for v in values], base)
    )
    return Eval("weight_error", _WeightError(), (column,), folders=())


@dataclasses.dataclass(frozen=True)
class _WeightError:
    def __call__(self, piece: Piece) -> Mapping[str, Any]:
        leaves = dict(zip(*flatten(piece.params)[:2], strict=True))
        pairs = [(q.dequantize(), leaves[path]) for path, q in piece.qparams.weights().items() if path in leaves]
        if not pairs:
            return {}
        off = sum(float(jnp.sum(jnp.square(served - w))) for served, w in pairs)
        return {"weight_error": off / sum(float(jnp.sum(jnp.square(w))) for _, w in pairs)}
