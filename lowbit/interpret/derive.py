"""Derived weights: computed from parameters, quantized after the arithmetic, evaluated once when packed."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from lowbit.plan.rows import Row

from .operations import Operation
from .trace import Trace
from .walk import Walk, plain


def _derived_paths(rows: tuple[Row, ...]) -> dict[str, int]:
    """Paths of operations with a quantized derived weight, and which operand it is."""
    return {
        row.path: i
        for row in rows
        for i, site in enumerate(row.sites)
        if site.kind in ("derived", "constant") and site.spec is not None
    }


def _zeros(aval: Any) -> Any:
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), aval.shape)
    return jnp.zeros(aval.shape, aval.dtype)


def has_derived(rows: tuple[Row, ...]) -> bool:
    """Returns whether any operation has a quantized weight that is computed."""
    return bool(_derived_paths(rows))


@functools.lru_cache(maxsize=64)
def derivation(traced: Trace, rows: tuple[Row, ...]) -> Callable[[Any], dict[str, Any]]:
    """Returns ``params -> {path: derived weight}``, stacked over layers where a scan is over layers.

    Derived weights do not depend on the data, so the function is run on zeros and everything else is dead code.
    """
    where = _derived_paths(rows)
    stacks = {row.path: row.stack for row in rows}
    avals = [var.aval for var in traced.jaxpr.jaxpr.invars]
    shapes = {op.path: op.eqn.invars[where[op.path]].aval for op in traced.inventory.operations if op.path in where}

    def at(op: Operation, values: list[Any], state: Any) -> tuple[Any, Any]:
        values = [plain(v) for v in values]
        return op.rebind(values), values[where[op.path]]

    # As simulated: products un-fused from sums, or a weight here and there is rounded to another level.
    walk = Walk(traced.inventory, at, frozenset(where), writes=True, reduce=lambda sites, _: sites, is_guarded=True)
    count = traced.count

    @jax.jit
    def derive(params: Any) -> dict[str, Any]:
        leaves = jax.tree.leaves(params)
        rest = [_zeros(aval) for aval in avals[count:]]
        start = {path: jnp.zeros((*stacks[path], *shapes[path].shape), shapes[path].dtype) for path in where}
        return walk.run([*leaves, *rest], start)[1]

    return derive


def dropped_leaves(traced: Trace, rows: tuple[Row, ...]) -> tuple[str, ...]:
    """Returns the parameter leaves that nothing but quantized derived weights needs."""
    where = _derived_paths(rows)
    stacks = {row.path: row.stack for row in rows}
    shapes = {op.path: op.eqn.invars[where[op.path]].aval for op in traced.inventory.operations if op.path in where}

    def at(op: Operation, values: list[Any], state: Any) -> tuple[Any, Any]:
        values = [plain(v) for v in values]
        values[where[op.path]] = state
        return op.rebind(values), state

    walk = Walk(traced.inventory, at, frozenset(where))

    def run(*leaves: Any) -> list[Any]:
        given = {path: jnp.zeros((*stacks[path], *shapes[path].shape), shapes[path].dtype) for path in where}
        return walk.run(leaves, given)[0]

    closed = jax.make_jaxpr(run)(*[var.aval for var in traced.jaxpr.jaxpr.invars])
    inner: Any = getattr(closed, "jaxpr", closed)
    _, used = partial_eval.dce_jaxpr(inner, [True] * len(inner.outvars))
    return tuple(path for path, is_used in zip(traced.paths, used, strict=False) if not is_used)
