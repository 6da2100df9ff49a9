"""Simpler spellings of primitives: what an exporter that does not know one may write instead. The numbers are the same."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from .read import Equation, Program, read


def _stack(*parts: Any, axis: int, **_: Any) -> Any:
    return lax.concatenate([lax.expand_dims(x, (axis,)) for x in parts], axis)


def _unstack(x: Any, *, axis: int, **_: Any) -> list[Any]:
    return [lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]


def _split(x: Any, *, sizes: Sequence[int], axis: int, **_: Any) -> list[Any]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [lax.slice_in_dim(x, start, start + size, axis=axis) for start, size in zip(starts, sizes, strict=True)]


def _tile(x: Any, *, reps: Sequence[int], **_: Any) -> Any:
    spread = [n for pair in zip(reps, x.shape, strict=True) for n in pair]
    spread_x = lax.broadcast_in_dim(x, spread, range(1, 2 * x.ndim, 2))
    return lax.reshape(spread_x, [n * m for n, m in zip(reps, x.shape, strict=True)])


def _cumulated(window: Callable[..., Any]) -> Callable[..., Any]:
    def cumulate(x: Any, *, axis: int, reverse: bool, **_: Any) -> Any:
        n = x.shape[axis]
        ones, pads = [1] * x.ndim, [(0, 0)] * x.ndim
        dims = [n if i == axis else 1 for i in range(x.ndim)]
        pads[axis] = (0, n - 1) if reverse else (n - 1, 0)
        return window(x, dims, ones, pads, ones, ones)

    return cumulate


def _window_sum(x: Any, dims: Any, strides: Any, pads: Any, *_: Any) -> Any:
    return lax.reduce_window(x, np.zeros((), x.dtype), lax.add, dims, strides, pads)


SPELLINGS: Mapping[str, Callable[..., Any]] = {
    "stack": _stack,
    "unstack": _unstack,
    "split": _split,
    "tile": _tile,
    "cumsum": _cumulated(_window_sum),
}
"""By primitive: ``(*operands, **parameters) -> results``."""


def spelling(equation: Equation) -> Program:
    """Returns the program of an equation's simpler form; its primitive is one of `SPELLINGS`."""
    function = functools.partial(SPELLINGS[equation.name], **equation.params)
    return read(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in equation.ins)))
