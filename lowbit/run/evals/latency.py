"""Time of a call, every method in turn with float, of the first seed."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from lowbit.run.experiment import FLOAT
from lowbit.run.measure import REST, Times, instruction_set, interleaved, kept, ratio
from lowbit.run.pieces import Piece
from lowbit.run.samples import arguments, chosen

from . import iree
from .column import Column, Eval
from .column import ratio as beside_float

RUNTIME = "xla"
"""Under which times of `lowbit.execute`, and of the float function, are kept."""


def latency(*, batches: Sequence[int] = (1,), seconds: float = 4.0, rest: float = REST) -> Eval:
    """Returns an eval: milliseconds of a call of `lowbit.execute` on packed weights, beside the float function's.

    Kept are, by batch, least and median, the ratio to float of the same rounds, the machine's load, and what ran every operation
    (`lowbit.explain`).

    Args:
        batches: samples of a call, each measured by itself.
        seconds: of measuring, for every batch.
        rest: seconds of sleep before a method's turn, in which the threads of the one before fall asleep.
    """
    measure = _Latency(tuple(batches), seconds, rest)
    return Eval("latency", measure, columns(batches), depends=instruction_set, is_together=True)


def columns(batches: Sequence[int], runtime: str = RUNTIME, said: str = "XLA") -> tuple[Column, ...]:
    """Returns a column of medians for every batch."""
    return tuple(Column(f"{said} ms b{n}", ("latency", runtime, f"b{n}", "median"), beside_float) for n in batches)


@dataclasses.dataclass(frozen=True)
class _Latency:
    batches: tuple[int, ...]
    seconds: float
    rest: float

    def __call__(self, pieces: Mapping[str, Piece]) -> Mapping[str, Any]:
        times_of: dict[str, dict[str, Any]] = {name: {} for name in pieces}
        for batch in self.batches:
            calls = {name: called(piece, batch) for name, piece in pieces.items()}
            timed = in_turns(calls, pieces, f"latency b{batch}", self.seconds, self.rest)
            for name, numbers in timed.items():
                times_of[name].setdefault(RUNTIME, {})[f"b{batch}"] = numbers.kept
        return {name: {"latency": values, **implementations(pieces[name])} for name, values in times_of.items()}


@dataclasses.dataclass(frozen=True)
class Timed:
    """Times of one contestant, and what is kept of them."""

    times: Times
    kept: dict[str, float]


def in_turns(
    calls: Mapping[str, Callable[[], Any]], pieces: Mapping[str, Piece], what: str, seconds: float, rest: float
) -> dict[str, Timed]:
    """Returns times of calls taken in turns: with the ratio to float where that is among them, and the load of the machine.

    Args:
        calls: by name.
        pieces: whose progress bar moves.
        what: is said there.
        seconds: of all.
        rest: before each turn.
    """
    bar = next(iter(pieces.values())).job.screen.start(what)
    before = os.getloadavg()[0]
    times = interleaved(calls, seconds=seconds, rest=rest, progress=bar)
    load = round(max(before, os.getloadavg()[0]), 1)
    timed = {}
    for name, each in times.items():
        over = {"over_float": round(ratio(each, times[FLOAT]), 4)} if FLOAT in times and name != FLOAT else {}
        timed[name] = Timed(each, kept(each) | over | {"load_average": load})
    return timed


def inputs(piece: Piece, batch: int) -> tuple[jax.Array, ...]:
    """Returns test inputs of a batch as arguments, over again where there are fewer."""
    return tuple(jnp.asarray(np.resize(x, (batch, *x.shape[1:]))) for x in arguments(piece.test))


def called(piece: Piece, batch: int) -> Callable[[], Any]:
    """Returns a call of a piece: of `lowbit.execute`, or of the float function under `jax.jit`."""
    x = inputs(piece, batch)
    if piece.is_float:
        return functools.partial(jax.jit(piece.fn), piece.params, piece.state, *x)
    return functools.partial(lb.execute(piece.fn, piece.plan), piece.qparams, piece.state, *x)


def implementations(piece: Piece) -> dict[str, Any]:
    """Returns what runs every quantized operation, by path, and the instructions of the native kernels where there are such."""
    if piece.is_float:
        return {}
    said = lb.explain(piece.fn, piece.plan, piece.qparams, piece.state, *inputs(piece, 1)).splitlines()
    how = dict(line.split()[:2] for line in said)
    return {"operations": {row.path: how[row.path] for row in piece.plan.quantized}, "isa": instruction_set()}


def iree_latency(*, seconds: float = 4.0, batch: int = 1, rest: float = REST) -> Eval:
    """Returns an eval: milliseconds of a call of the module that `iree` compiled, which must be asked for too.

    Args:
        seconds: of measuring.
        batch: samples of a call, as `iree` has them.
        rest: seconds of sleep before a method's turn.
    """
    measure = _IreeLatency(seconds, batch, rest)
    return Eval("iree_latency", measure, columns((batch,), "iree", "IREE"), iree.require, is_together=True)


@dataclasses.dataclass(frozen=True)
class _IreeLatency:
    seconds: float
    batch: int
    rest: float

    def __call__(self, pieces: Mapping[str, Piece]) -> Mapping[str, Any]:
        calls = {}
        for name, piece in pieces.items():
            target = piece.folder / "model.vmfb"
            if not target.is_file():
                raise ValueError("evals: iree_latency times what iree compiles: ask for iree too, before it")
            calls[name] = functools.partial(iree.loaded(target), *arguments(chosen(piece.test, slice(self.batch))))
        timed = in_turns(calls, pieces, "iree_latency", self.seconds, self.rest)
        return {name: {"latency": {"iree": {f"b{self.batch}": each.kept}}} for name, each in timed.items()}
