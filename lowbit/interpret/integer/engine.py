"""The engine of full-integer plans: every step in integers, from the codes of arguments to those of results."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array

from lowbit.core.meshes import automatic
from lowbit.interpret.observe import Grids, States, Watch
from lowbit.interpret.state import QState, collected, with_spans_from
from lowbit.interpret.trace import Trace
from lowbit.plan.rows import Plan

from .interpretations import freezer, simulation
from .interpretations import observation as measured
from .observe import observation


class FullInteger:
    """See `lowbit.interpret.engine.Engine`."""

    beside: frozenset[str] = frozenset(("gradient",))

    def simulated(
        self, plan: Plan, traced: Trace, qstate: QState, *, train: bool, key: Array | None, step: Array | None,
        custom_vjp: str, codes: Mapping[str, Any],
    ) -> tuple[Any, QState]:  # fmt: skip
        """Returns ``(y, qstate')`` of a call."""

        def run(leaves: list[Any], qstate: QState, codes: Any, key: Array | None, step: Array | None) -> Any:
            now = dataclasses.replace(traced, leaves=leaves)
            return simulation(plan, now, qstate, train=train, key=key, step=step, codes=codes, custom_vjp=custom_vjp)

        like = list(traced.jaxpr.out_avals), None, None
        outs, changed, sites = automatic(run, traced.leaves, qstate, codes, key, step, like=like)
        result = jax.tree.unflatten(traced.out_tree, outs)
        return result, (with_spans_from(collected(plan, changed, sites), qstate) if train else qstate)

    def measured(self, plan: Plan, traced: Trace, statistics: States, grids: Grids | None) -> States:
        """Returns the statistics of every site after one batch, the model in float."""
        assert grids is None  # `lowbit.calibrate` refuses it

        def look(leaves: list[Any], statistics: States) -> States:
            return measured(plan, dataclasses.replace(traced, leaves=leaves), statistics)

        return automatic(look, traced.leaves, statistics)

    def observed(
        self, plan: Plan, traced: Trace, watch: Watch, states: States, *, qstate: QState, codes: Mapping[str, Any],
        floats: Trace, beside: Mapping[str, Any],
    ) -> States:  # fmt: skip
        """Returns the states of what is watched after one batch, the float model computed beside."""

        def look(leaves: Any, float_leaves: Any, states: Any, qstate: Any, codes: Any, beside: Any) -> States:
            now, right = (dataclasses.replace(t, leaves=x) for t, x in ((traced, leaves), (floats, float_leaves)))
            given = {"qstate": qstate, "codes": codes, "floats": right, "beside": beside}
            return observation(plan, now, watch, states, **given)

        return automatic(look, traced.leaves, floats.leaves, states, qstate, codes, beside)

    def constants(
        self, plan: Plan, traced: Trace, params: Any, qstate: QState, codes: Mapping[str, Any]
    ) -> Mapping[str, Mapping[str, Any]]:
        """Returns what integers are computed with beside the weights' codes, by path."""
        return freezer(plan, traced)(params, qstate, codes)
