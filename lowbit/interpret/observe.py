"""`observe`: the model in float, its operands watched."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from lowbit.core.qtensor import QTensor
from lowbit.plan.rows import Plan

from .integer.interpretations import observation as integer_observation
from .operations import Operation
from .simulate import compute
from .state import QState, finished, get, has_no_values, layer_operand, quantizer_of, statistics_of, walked_sites
from .trace import Model, check_same_operations, trace
from .walk import Walk, plain


@functools.lru_cache(maxsize=256)
def observer(fn: Model, plan: Plan, *, sequential: bool = False) -> Callable[..., dict[str, Any]]:
    """Returns ``step(params, qstate, statistics, args, kwargs) -> statistics'``, jitted and cached.

    Args:
        fn: the function.
        plan: its plan.
        sequential: whether operations see their inputs as earlier operations, already quantized, leave them; needs a
            ``qstate`` with the weights' states, else it is not read.
    """

    @jax.jit
    def step(params, qstate, statistics, args, kwargs):
        return observation(fn, plan, params, statistics, args, kwargs, qstate=qstate if sequential else None)

    return step


def observation(
    fn: Model,
    plan: Plan,
    params: Any,
    statistics: Mapping[str, Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    qstate: QState | None = None,
) -> dict[str, Any]:
    """Returns the statistics after one batch: ``{path: {role: {name: state}}}``."""
    traced = trace(fn, params, args, dict(kwargs), has_picks=not plan.is_full_integer)
    check_same_operations(traced.graph, plan)
    if plan.is_full_integer:
        if qstate is not None:
            raise ValueError("sequential=True is not for full-integer plans: their grids are measured in float")
        return integer_observation(plan, traced, statistics)
    rows = {row.path: row for row in plan.rows}
    leaves = list(traced.leaves)
    if qstate is not None:
        for path, site in plan.leaf_sites().items():
            i = traced.paths.index(path)
            leaves[i] = quantizer_of(site).quantize(get(qstate, path, site.role), leaves[i], site.operand)

    def at(op: Operation, values: list[Any], states: Any) -> tuple[Any, Any]:
        after, operands = dict(states), []
        for site, value in zip(rows[op.path].sites, values, strict=True):
            if site.role in after and site.kind != "leaf":
                x = plain(value)
                if not has_no_values(x):
                    after[site.role] = {s.name: s.update(after[site.role][s.name], x) for s in statistics_of(site)}
                if qstate is not None:
                    state = quantizer_of(site).init(
                        layer_operand(site), finished(site, after[site.role]), jax.random.key(0)
                    )
                    value = quantizer_of(site).quantize(state, x, layer_operand(site))
            operands.append(value)
        if qstate is None:
            operands = [v if isinstance(v, QTensor) and op.is_lookup else plain(v) for v in operands]
        return compute(op, *operands), after

    def reduce(sites, axis_names):
        return {
            path: {
                site.role: {s.name: s.across(roles[site.role][s.name], axis_names) for s in statistics_of(site)}
                for site in rows[path].sites
                if site.role in roles
            }
            for path, roles in sites.items()
        }

    walked = {row.path for row, _ in walked_sites(plan)}
    paths = frozenset(row.path for row in plan.quantized) if qstate is not None else frozenset(walked)
    start = {path: statistics.get(path, {}) for path in paths}
    walk = Walk(traced.graph, at, paths, writes=True, reduce=reduce)
    _, after = walk.run(leaves, start)
    return {path: after[path] for path in statistics}
