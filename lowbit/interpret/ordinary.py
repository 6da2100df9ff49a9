"""The engine of ordinary plans: quantized operations on their grids, and whatever is between them as it is."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array

from lowbit.core.meshes import automatic
from lowbit.core.qtensor import QTensor
from lowbit.core.quantizer import Quantizer
from lowbit.core.spec import Operand
from lowbit.plan.rows import Plan, Site

from .codes import with_codes
from .observe import Grids, States, Watch, observation
from .operate import compute
from .operations import Operation
from .ranks import fitted, with_axes
from .state import (
    CODES,
    QState,
    after_batch,
    carried_states,
    collected,
    get,
    layer_operand,
    quantizer_of,
    site_key,
    statistics_of,
    walked_sites,
)
from .trace import Trace
from .walk import Walk, plain


class Ordinary:
    """See `lowbit.interpret.engine.Engine`."""

    beside: frozenset[str] = frozenset(("float", "gradient"))

    def simulated(
        self, plan: Plan, traced: Trace, qstate: QState, *, train: bool, key: Array | None, step: Array | None,
        custom_vjp: str, codes: Mapping[str, Any],
    ) -> tuple[Any, QState]:  # fmt: skip
        """Returns ``(y, qstate')`` of a call."""
        forward = _forward(key, step, train=train)
        leaf_sites = plan.leaf_sites()
        leaves = list(traced.leaves)
        updates: dict[str, Any] = {}
        for i, path in enumerate(traced.paths):
            if path in leaf_sites:
                site = leaf_sites[path]
                state = get(qstate, site.key, site.role)
                if train:
                    updates[path] = automatic(
                        functools.partial(after_batch, site), state, {"values": leaves[i]}, like=leaves[i]
                    )
                leaves[i] = with_codes(forward(site, state, leaves[i], site.operand), codes.get(path))
        fit = fitted(plan, traced.inventory)
        rows = {row.path: row for row in fit.rows}
        sites = with_axes(plan, fit, carried_states(plan, qstate, codes))

        def at(op: Operation, values: list[Any], states: Any) -> tuple[Any, Any]:
            after = dict(states or {})
            operands = []
            for site, value in zip(rows[op.path].sites, values, strict=True):
                if site.spec is None:
                    operands.append(value if op.is_lookup else plain(value))
                elif site.kind == "leaf":
                    operands.append(value)
                else:
                    x, operand = plain(value), layer_operand(site)
                    if train:
                        after[site.role] = after_batch(site, states[site.role], None, x)
                    q = forward(site, states[site.role], x, operand)
                    operands.append(with_codes(q, states.get(CODES)) if site.is_weight else q)
            return compute(op, *operands), after

        walk = Walk(
            traced.inventory,
            at,
            frozenset(row.path for row in plan.quantized),
            writes=train,
            reduce=_mean_over,
            is_guarded=True,
            inside="raise" if custom_vjp == "raise" else "any",
        )
        outs, sites = walk.run(leaves, sites)
        result = jax.tree.unflatten(traced.out_tree, outs)
        return result, (collected(plan, updates, with_axes(fit, plan, sites)) if train else qstate)

    def measured(self, plan: Plan, traced: Trace, statistics: States, grids: Grids | None) -> States:
        """Returns the statistics of every site after one batch."""
        wanted: dict[str, dict[str, Any]] = {}
        for row, site in walked_sites(plan):
            wanted.setdefault(row.path, {})[site.role] = statistics_of(site)
        fit = fitted(plan, traced.inventory)
        after = observation(fit, traced, Watch.of(wanted), with_axes(plan, fit, statistics), grids=grids)
        return with_axes(fit, plan, after)

    def observed(
        self, plan: Plan, traced: Trace, watch: Watch, states: States, *, qstate: QState, codes: Mapping[str, Any],
        floats: Trace, beside: Mapping[str, Any],
    ) -> States:  # fmt: skip
        """Returns the states of what is watched after one batch on quantized operands."""
        fit = fitted(plan, traced.inventory)
        carried = with_axes(plan, fit, carried_states(plan, qstate, codes))
        grids = Grids.of(qstate, codes)
        return observation(fit, traced, watch, states, grids=grids, carried=carried, beside=beside)

    def constants(
        self, plan: Plan, traced: Trace, params: Any, qstate: QState, codes: Mapping[str, Any]
    ) -> Mapping[str, Mapping[str, Any]]:
        """Returns none: scales are all that is packed beside weights."""
        return {}


def _forward(key: Array | None, step: Array | None, *, train: bool) -> Callable[..., QTensor]:
    def forward(site: Site, state: Any, x: Any, operand: Any) -> QTensor:
        quantizer = quantizer_of(site)
        if not train:
            return automatic(functools.partial(_quantized, quantizer, operand), state, x, like=x)

        def trained(state: Any, x: Any, key: Array | None, step: Array | None) -> QTensor:
            now = None if key is None else site_key(key, f"{site.key}/{site.role}")
            return _trained(quantizer, operand, state, x, now, step)

        return automatic(trained, state, x, key, step, like=x)

    return forward


@functools.partial(jax.jit, static_argnums=(0, 1))
def _quantized(quantizer: Quantizer, operand: Operand, state: Any, x: Array) -> QTensor:
    return quantizer.quantize(state, x, operand)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _trained(
    quantizer: Quantizer, operand: Operand, state: Any, x: Array, key: Array | None, step: Array | None
) -> QTensor:
    return quantizer.train(state, x, operand, key=key, step=step)


def _mean_over(sites: dict[str, Any], axis_names: tuple[str, ...]) -> dict[str, Any]:
    return jax.tree.map(lambda x: jax.lax.pmean(x, axis_names), sites)
