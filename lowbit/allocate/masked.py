"""The model with some operations quantized and the others in float: which ones is data, so one program measures them all."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.interpret.operate import compute
from lowbit.interpret.operations import Operation
from lowbit.interpret.state import QState, get, layer_operand, quantizer_of, walked_sites
from lowbit.interpret.trace import Model, trace_planned
from lowbit.interpret.walk import Walk, plain
from lowbit.plan.rows import Plan


def masked(fn: Model, plan: Plan, params: Any, qstate: QState, mask: Any, args: Any, kwargs: Any) -> Any:
    """Returns ``fn`` with the quantized operands of those operations on their grids whose mask is not zero.

    Args:
        fn: the function.
        plan: its plan, not full-integer.
        params: float parameters.
        qstate: of the plan.
        mask: ``{path: scalar}``, of every quantized row; a shared weight goes by its first row.
        args: of one batch.
        kwargs: keyword arguments.
    """
    traced = trace_planned(fn, plan, params, args, dict(kwargs))
    leaves, rows = list(traced.leaves), {row.path: row for row in plan.rows}
    first = {row.weight.key: row.path for row in reversed(plan.quantized) if row.weight is not None}
    for key, site in plan.leaf_sites().items():
        i = traced.paths.index(key)
        on_grid = plain(quantizer_of(site).quantize(get(qstate, key, site.role), leaves[i], site.operand))
        leaves[i] = jnp.where(mask[first[key]] != 0, on_grid.astype(leaves[i].dtype), leaves[i])
    states: dict[str, Any] = {}
    for row, site in walked_sites(plan):
        stack = getattr(row, "stack", ())
        on = jnp.broadcast_to(mask[row.path], stack)
        states.setdefault(row.path, {"on": on})[site.role] = get(qstate, site.key, site.role)

    def at(op: Operation, values: list[Any], state: Any) -> tuple[Any, Any]:
        operands = []
        for site, value in zip(rows[op.path].sites, values, strict=True):
            if site.spec is None or site.kind == "leaf":
                operands.append(value if op.is_lookup else plain(value))
                continue
            x = plain(value)
            on_grid = plain(quantizer_of(site).quantize(state[site.role], x, layer_operand(site)))
            operands.append(jnp.where(state["on"] != 0, on_grid.astype(x.dtype), x))
        return compute(op, *operands), state

    walk = Walk(traced.inventory, at, frozenset(states), is_guarded=True, inside="any")
    outs, _ = walk.run(leaves, states)
    return jax.tree.unflatten(traced.out_tree, outs)


@functools.lru_cache(maxsize=64)
def one_at_a_time(fn: Model, plan: Plan, measure: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Returns ``(params, qstate, masks, args, kwargs) -> measure(float result, result)`` of every mask, jitted.

    Args:
        fn: the function.
        plan: its plan.
        measure: from the float result and another to a scalar.
    """

    @jax.jit
    def run(params: Any, qstate: QState, masks: Any, args: Any, kwargs: Any) -> Any:
        right = fn(params, *args, **kwargs)

        def one(mask: Any) -> Any:
            return measure(right, masked(fn, plan, params, qstate, mask, args, kwargs))

        return jax.lax.map(one, masks)

    return run
