"""The interpretation of full-integer plans: every step in integers, from the codes of arguments to those of results."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array

from lowbit.core.meshes import automatic, explicit_mesh
from lowbit.interpret.derivative import without_derivative
from lowbit.interpret.elsewhere import integer_results
from lowbit.interpret.implementations import ELSEWHERE, How
from lowbit.interpret.observe import Grids, States, Watch
from lowbit.interpret.refusals import Refusals
from lowbit.interpret.state import QState, collected, with_spans_from
from lowbit.interpret.trace import Args, Kwargs, Model, Trace, trace_planned
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan

from .interpretations import execution, freezer, simulation
from .interpretations import observation as measured
from .native import FixedOrders, kernel_lines
from .observe import observation
from .weights import check_weights

_NO_DERIVATIVE = (
    "lowbit.execute of a full-integer plan has no derivative: differentiate lowbit.simulate, whose values are the same, or pass "
    "what goes into it through jax.lax.stop_gradient"
)


class FullInteger:
    """See `lowbit.interpret.interpretation.Interpretation`."""

    plans = "full-integer plans"
    beside: frozenset[str] = frozenset(("gradient",))
    lacks: tuple[str, ...] = ELSEWHERE

    def check(self, plan: Plan, traced: Trace, refused: Refusals) -> None:
        """Notes the first weight whose codes cannot be put where an operation reads them."""
        refused.attempt("", lambda: check_weights(plan, traced))

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
        floats: Trace, beside: Mapping[str, Any], is_alone: bool = False,
    ) -> States:  # fmt: skip
        """Returns the states of what is watched after one batch, the float model computed beside."""

        def look(leaves: Any, float_leaves: Any, states: Any, qstate: QState, codes: Any, beside: Any) -> States:
            now, right = (dataclasses.replace(t, leaves=x) for t, x in ((traced, leaves), (floats, float_leaves)))
            given = {"qstate": qstate, "codes": codes, "floats": right, "beside": beside, "is_alone": is_alone}
            return observation(plan, now, watch, states, **given)

        return automatic(look, traced.leaves, floats.leaves, states, qstate, codes, beside)

    def executed(self, fn: Model, plan: Plan, qparams: QParams, args: Args, kwargs: Kwargs, how: How) -> Any:
        """Returns ``y`` of a call on packed parameters.

        Raises:
            ValueError: where the named implementation cannot run an operation.
        """
        traced = trace_planned(fn, plan, qparams.params, args, dict(kwargs), has_codes=how.has_integer_io)
        if how.has_derivative:
            leaves, qparams = without_derivative(_NO_DERIVATIVE, (traced.leaves, qparams))
            traced = dataclasses.replace(traced, leaves=leaves)
        on_mesh = explicit_mesh((traced.leaves, qparams)) is not None
        orders = {} if on_mesh else how.orders
        run = functools.partial(
            execution, plan, has_integer_io=how.has_integer_io, orders=orders, is_named=not how.has_derivative
        )

        def results(leaves: list[Any], qparams: QParams) -> list[Any]:
            now = dataclasses.replace(traced, leaves=leaves)
            outs, name, why = integer_results(run, now, qparams, how.implementation, how.platform)
            if how.implementation not in (None, "cpu") or how.platform not in (None, "cpu"):
                said = [(row.path, name, why) for row in plan]
            else:
                said = kernel_lines(plan, now, qparams, orders, name, why, on_mesh=on_mesh)
            if how.implementation == "cpu" and (left := next((line for line in said if line[1] != "cpu"), None)):
                raise ValueError(f"implementation 'cpu' cannot run {left[0]}: {left[2]}")
            if how.report is not None:
                how.report.extend(said)
            return outs

        outs = automatic(results, traced.leaves, qparams, like=list(traced.jaxpr.out_avals))
        return jax.tree.unflatten(traced.out_tree, outs)

    def kernel_orders(self, fn: Model, plan: Plan) -> FixedOrders:
        """Returns what puts weights of a plan into the kernels' order, and remembers them."""
        return FixedOrders(fn, plan)

    def needs_program(self, plan: Plan) -> str:
        """Returns which of its parts are computed anew: what integers are computed with."""
        return "integer constants need"

    def constants(
        self, plan: Plan, traced: Trace, params: Any, qstate: QState, codes: Mapping[str, Any]
    ) -> Mapping[str, Mapping[str, Any]]:
        """Returns what integers are computed with beside the weights' codes, by path."""
        return freezer(plan, traced)(params, qstate, codes)
