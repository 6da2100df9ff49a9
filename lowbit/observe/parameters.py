"""States of statistics by parameter: those of all operations that multiply it, each where its matrix is in the leaf."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.statistics import Statistic
from lowbit.interpret.observe import Watch, observed
from lowbit.plan.rows import Plan, Row


def at_parameters(plan: Plan, watch: Watch, states: Any) -> Iterator[tuple[str, str, Statistic, Any, int]]:
    """Yields what was seen of the inputs of parameters that operations share, or that they take a layer of.

    A layer that a constant index takes is seen by the operation that takes it; one that data picks may be any: all have what
    was seen of all.

    Yields:
        The leaf's path, the statistic's name, the statistic, its state with an axis in front for every axis of the leaf that
        counts layers, and how many those are.
    """
    wanted = watch.by_path()
    rows_of: dict[str, list[Row]] = {}
    for row in plan.rows:
        if row.weight is not None and row.weight.kind == "leaf" and "input" in wanted.get(row.path, {}):
            rows_of.setdefault(row.weight.key, []).append(row)
    for key, rows in rows_of.items():
        for statistic in wanted[rows[0].path]["input"]:
            using = [row for row in rows if statistic in wanted[row.path]["input"]]
            if not statistic.is_of_product or (len(using) == 1 and using[0].path == key and _is_whole(using[0])):
                continue
            placed = [_placed(row, statistic, states[row.path]["input"][statistic.name]) for row in using]
            shapes = {tuple(x.shape for x in jax.tree.leaves(state)) for state in placed}
            if len(shapes) == 1 and None not in placed:
                assert using[0].weight is not None
                depth = using[0].weight.operand.stack
                yield key, statistic.name, statistic, functools.reduce(_mapped(statistic.merge, depth), placed), depth


def _is_whole(row: Row) -> bool:
    """Whether an operation has a state for every layer of its weight, and no other."""
    assert row.weight is not None
    return tuple(row.weight.operand.shape[: row.weight.operand.stack]) == row.stack


def _mapped(function: Any, depth: int) -> Any:
    """A function of states, for states with so many axes in front."""
    for _ in range(depth):
        function = jax.vmap(function)
    return function


def _placed(row: Row, statistic: Statistic, state: Any) -> Any:
    """The state of an operation with the axes in front that its weight's layers have.

    None where nothing says which of several scans of one length the weight goes with, or that an index picks in scans.
    """
    weight = row.weight
    assert weight is not None
    layers = weight.operand.shape[: weight.operand.stack]
    cut = {axis: start for axis, start in weight.starts if axis < len(layers)}
    left = tuple(n for axis, n in enumerate(layers) if axis not in cut)
    fits = [
        kept
        for kept in itertools.combinations(range(len(row.stack)), len(left))
        if left == tuple(row.stack[i] for i in kept)
    ]
    if len(fits) == 1:
        surplus = [i for i in reversed(range(len(row.stack))) if i not in fits[0]]  # all their turns have one weight
        for depth, axis in zip(reversed(range(len(row.stack))), surplus, strict=False):
            parts = [jax.tree.map(lambda x, i=i, a=axis: jnp.take(x, i, axis=a), state) for i in range(row.stack[axis])]
            state = functools.reduce(_mapped(statistic.merge, depth), parts)
    elif not row.stack:  # data picks the layer
        state = jax.tree.map(lambda x: jnp.broadcast_to(x, (*left, *x.shape)), state)
    else:
        return None
    fresh = statistic.init(observed(row.operation, row, "input"))
    for axis, start in sorted(cut.items()):
        n = layers[axis]
        state = jax.tree.map(lambda x, y, axis=axis, start=start, n=n: _at(x, y, axis, start, n), state, fresh)
    return state


def _at(x: jax.Array, fresh: jax.Array, axis: int, start: int, count: int) -> jax.Array:
    """An array at one place of a new axis, what nothing was seen of at the others."""
    others = jnp.broadcast_to(fresh, (*x.shape[:axis], count, *x.shape[axis:]))
    return others.at[(slice(None),) * axis + (start,)].set(x)
