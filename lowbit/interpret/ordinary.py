"""The interpretation of ordinary plans: quantized operations on their grids, and whatever is between them as it is."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array

from lowbit.core.meshes import automatic
from lowbit.core.qtensor import QTensor
from lowbit.core.quantizer import Quantizer
from lowbit.core.spec import Operand
from lowbit.interpret.trace import Args, Kwargs
from lowbit.packed import native
from lowbit.packed.bits import unpack
from lowbit.packed.platforms import PLATFORMS, by_platform, viewed
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan, Row, Site
from lowbit.program.compat import rebind

from .arithmetic import integer_result, is_integer_pair, result_dtype
from .codes import with_codes
from .derivative import differentiable
from .derive import has_derived
from .elsewhere import kernel_result
from .implementations import ANYWHERE, How
from .inputs import quantized_input
from .int8 import int8_result
from .lookup import lookup
from .matmul import Matmul
from .native_route import float_weight, native_result
from .observe import Grids, States, Watch, observation
from .operate import compute
from .operations import Operation
from .pair_route import pair_result
from .placed import check_moves
from .poison import poisoned
from .prepared import Prepared
from .ranks import fitted, with_axes
from .refusals import Refusals
from .sides import weight_right
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
from .trace import Model, Trace, trace_planned
from .walk import Walk, plain


class Ordinary:
    """See `lowbit.interpret.interpretation.Interpretation`."""

    plans = "ordinary plans"
    beside: frozenset[str] = frozenset(("float", "gradient"))
    lacks: tuple[str, ...] = ()

    def check(self, plan: Plan, traced: Trace, refused: Refusals) -> None:
        """Notes every weight whose scale cannot follow it to its operation."""

        def run(plan: Plan, traced: Trace, qstate: QState) -> Any:
            given = {"train": False, "key": None, "step": None, "custom_vjp": "body", "codes": {}}
            return self.simulated(plan, traced, qstate, **given)[0]

        check_moves(plan, traced, refused, run)

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
        floats: Trace, beside: Mapping[str, Any], is_alone: bool = False,
    ) -> States:  # fmt: skip
        """Returns the states of what is watched after one batch on quantized operands."""
        fit = fitted(plan, traced.inventory)
        carried = with_axes(plan, fit, carried_states(plan, qstate, codes))
        grids = Grids.of(qstate, codes)
        if is_alone:
            grids = grids.forced()
            for path, roles in beside.items():
                carried.setdefault(path, {})["float"] = {role: each["float"] for role, each in roles.items()}
        return observation(fit, traced, watch, states, grids=grids, carried=carried, beside=beside)

    def executed(self, fn: Model, plan: Plan, qparams: QParams, args: Args, kwargs: Kwargs, how: How) -> Any:
        """Returns ``y`` of a call on packed parameters."""
        qparams = qparams if how.platform == "cpu" else viewed(plan, qparams)
        traced = trace_planned(fn, plan, qparams.params, args, dict(kwargs), has_codes=how.has_integer_io)
        return _executed(plan, traced, qparams, how) if plan.quantized else fn(qparams.params, *args, **kwargs)

    def kernel_orders(self, fn: Model, plan: Plan) -> Prepared:
        """Returns what puts weights of a plan into the kernels' order, and remembers them."""
        return Prepared(plan)

    def needs_program(self, plan: Plan) -> str:
        """Returns which of its parts are computed anew: derived weights."""
        return "derived weights need" if has_derived(plan.rows) else ""

    def constants(
        self, plan: Plan, traced: Trace, params: Any, qstate: QState, codes: Mapping[str, Any]
    ) -> Mapping[str, Mapping[str, Any]]:
        """Returns none: scales are all that is packed beside weights."""
        return {}


def _forward(key: Array | None, step: Array | None, *, train: bool) -> Callable[..., QTensor]:
    def forward(site: Site, state: Any, x: Any, operand: Operand) -> QTensor:
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


_COMPUTED = ("derived", "constant")


def _executed(plan: Plan, traced: Trace, qparams: QParams, how: How) -> Any:
    implementation, report, keeps_nan = how.implementation, how.report, how.keeps_nan
    fit = fitted(plan, traced.inventory)
    rows = {row.path: row for row in fit.rows}
    prepared = frozenset(key for key, q in qparams.weights().items() if native.is_for(q, "cpu"))

    def at(op: Operation, values: list[Any], states: Any) -> tuple[Any, Any]:
        states, row = states or {}, rows[op.path]
        values = [
            states[s.role] if s.kind in _COMPUTED and s.spec else v for s, v in zip(row.sites, values, strict=True)
        ]
        if not how.has_derivative or op.is_lookup:
            return anywhere(op, row, values, states), states
        return differentiable(op, row, functools.partial(anywhere, op, row), values, states), states

    def anywhere(op: Operation, row: Row, values: Sequence[Any], states: Any) -> Any:
        if how.platform is not None:
            return on(how.platform, op, row, values, states)
        functions = {name: functools.partial(on, name, op, row) for name in PLATFORMS}
        like = jax.ShapeDtypeStruct(op.eqn.outvars[0].aval.shape, result_dtype(op.eqn))
        return by_platform(functions, functions["cpu"], like, values, states)

    def on(platform: str, op: Operation, row: Row, values: Sequence[Any], states: Any) -> Any:
        note = "".join(f"the {site.role} is quantized by {site.own_code}" for site in row.sites if site.own_code)
        result, reason = None, f"asked for {implementation}"
        is_cpu, name = platform == "cpu", "cpu"
        if implementation not in ANYWHERE:
            if not is_cpu:
                result, name, reason = kernel_result(platform, op, row, values, states, implementation, quantized_input)
            elif implementation in (None, "cpu"):
                result, reason = (
                    pair_result(op, row, values, states, keeps_nan=keeps_nan)
                    if row.weight is None
                    else native_result(op, row, values, states, prepared, keeps_nan=keeps_nan, is_fused=how.is_fused)
                )
            else:
                reason = f"it is no implementation of execute's on a CPU (platform={platform!r})"
        if result is not None:
            reason = reason or ""
        elif implementation not in (None, *ANYWHERE):
            raise ValueError(f"implementation {implementation!r} cannot run {op.path}: {reason}")
        else:
            operands = [
                _operand(site, v, states, is_lookup=op.is_lookup) for site, v in zip(row.sites, values, strict=True)
            ]
            name = "reference" if implementation == "reference" else "carried"
            name = name if row.is_integer and is_cpu else "xla"
            carried = functools.partial(integer_result, carried=implementation != "reference")
            result = _result(
                op, *operands, product=carried if is_cpu else functools.partial(int8_result, platform=platform)
            )
            left, right = operands
            if keeps_nan and is_integer_pair(left, right) and not op.is_lookup:
                result = poisoned(Matmul.of(op.eqn), left, right, result)
        if report is not None:
            report.append((op.path, name, "; ".join(part for part in (reason, note) if part)))
        return result

    walk = Walk(traced.inventory, at, frozenset(row.path for row in plan.quantized), is_guarded=True)
    outs, _ = walk.run(traced.leaves, with_axes(plan, fit, qparams.sites))
    return jax.tree.unflatten(traced.out_tree, outs)


def _operand(site: Site, value: Any, states: Mapping[str, Any], *, is_lookup: bool) -> Any:
    if site.spec is None:
        return value if isinstance(value, QTensor) else plain(value)
    if site.is_weight:
        held = float_weight(value)
        return held if held is not None else value if is_lookup else unpack(value)
    return quantized_input(site, states.get(site.role, {}), plain(value))


def _result(op: Operation, left: Any, right: Any, *, product: Callable[..., Any]) -> Any:
    if op.is_lookup:
        return lookup(op.eqn, left, right) if isinstance(left, QTensor) else op.rebind([left, right])
    if is_integer_pair(left, right):
        sides = weight_right(op.eqn, op.weight)
        operands = sides.operands(left, right)
        return sides.restore(product(sides.matmul, *operands, result_dtype(op.eqn)))
    return rebind(op.eqn, [plain(left), plain(right)])[0]
