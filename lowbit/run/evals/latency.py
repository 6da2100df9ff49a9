"""Time of a call, every method in turn, of the first seed."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from lowbit.run.measure import latencies
from lowbit.run.pieces import Piece

from . import iree
from .column import Column, Eval, ratio


def latency(*, rounds: int = 50, batch: int = 1) -> Eval:
    """Returns an eval: milliseconds of a call through XLA on packed weights, beside the float function's.

    Args:
        rounds: calls per method, in turns.
        batch: samples of a call.
    """
    column = Column(f"XLA ms b{batch}", ("latency", "xla", "median"), ratio)
    return Eval("latency", _Latency(rounds, batch), (column,), is_together=True)


@dataclasses.dataclass(frozen=True)
class _Latency:
    rounds: int
    batch: int

    def __call__(self, pieces: Mapping[str, Piece]) -> Mapping[str, Any]:
        calls = {}
        for name, piece in pieces.items():
            x = jnp.asarray(np.resize(piece.test, (self.batch, *piece.test.shape[1:])))
            if piece.is_float:
                calls[name] = functools.partial(jax.jit(piece.fn), piece.params, piece.state, x)
            else:
                calls[name] = functools.partial(lb.execute(piece.fn, piece.plan), piece.qparams, piece.state, x)
        found = latencies(calls, self.rounds)
        return {name: {"latency": {"xla": values}} for name, values in found.items()}


def iree_latency(*, rounds: int = 50, batch: int = 1) -> Eval:
    """Returns an eval: milliseconds of a call of the module that `iree` compiled, which must be asked for too.

    Args:
        rounds: calls per method, in turns.
        batch: samples of a call, as `iree` has them.
    """
    column = Column(f"IREE ms b{batch}", ("latency", "iree", "median"), ratio)
    return Eval("iree_latency", _IreeLatency(rounds, batch), (column,), iree.require, is_together=True)


@dataclasses.dataclass(frozen=True)
class _IreeLatency:
    rounds: int
    batch: int

    def __call__(self, pieces: Mapping[str, Piece]) -> Mapping[str, Any]:
        calls = {}
        for name, piece in pieces.items():
            target = piece.folder / "model.vmfb"
            if not target.is_file():
                raise ValueError("evals: iree_latency times what iree compiles: ask for iree too, before it")
            calls[name] = functools.partial(iree.loaded(target), piece.test[: self.batch])
        found = latencies(calls, self.rounds)
        return {name: {"latency": {"iree": values}} for name, values in found.items()}
