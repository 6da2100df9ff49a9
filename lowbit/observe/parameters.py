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
    cuts = {axis: (start, count) for axis, start, count in weight.cuts if axis < len(layers)}
    taken = [cuts.get(axis, (0, n))[1] for axis, n in enumerate(layers)]
    left = tuple(n for axis, n in enumerate(taken) if axis not in cuts or n > 1)  # of the others an index takes one
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
    for axis, (start, count) in sorted(cuts.items()):
        place = functools.partial(_at, axis=axis, start=start, layers=layers[axis], is_one=count == 1)
        state = jax.tree.map(place, state, fresh)
    return state


def _at(x: jax.Array, fresh: jax.Array, *, axis: int, start: int, layers: int, is_one: bool) -> jax.Array:
    """An array at its place of an axis of layers, which it has not where it is of one; what nothing was seen of elsewhere."""
    x = jnp.expand_dims(x, axis) if is_one else x
    others = jnp.broadcast_to(fresh, (*x.shape[:axis], layers, *x.shape[axis + 1 :]))
    return jax.lax.dynamic_update_slice_in_dim(others, x, start, axis)
