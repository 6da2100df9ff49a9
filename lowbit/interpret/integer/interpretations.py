"""The interpretations of a full-integer plan: observe, simulate, freeze, execute. One evaluator, one arithmetic."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lowbit.core.gradients import straight_through
from lowbit.core.paths import leaf_path
from lowbit.core.qtensor import QTensor
from lowbit.core.quantizer import Quantizer
from lowbit.core.rounding import widened
from lowbit.core.spec import Operand, Spec
from lowbit.interpret.codes import with_codes
from lowbit.interpret.refusals import Refusal, Refusals, Refused
from lowbit.interpret.state import QState, after_batch, get, layer_operand, quantizer_of, site_key, statistics_of
from lowbit.interpret.trace import Trace
from lowbit.interpret.walk import plain
from lowbit.packed.bits import unpack
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan, Site
from lowbit.plan.show import is_of_integers
from lowbit.program.read import Value

from . import spans
from .compute import code_dtype
from .constants import constants
from .ends import dequantized, quantized
from .fixed import rounding_named
from .flat import Constants
from .kind import Movement
from .native import Grid, Orders, floats_of, natives_of
from .nodes import Node, Placement
from .ops import kind_named
from .own_gradients import refusing_parts
from .plans import check_new, check_rows, program_for, program_of, steps_of
from .run import Arithmetic, Levels, data_of, defined, evaluate, results
from .weights import weight_of, weight_places, weights_of


def observation(plan: Plan, traced: Trace, statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the statistics of every grid after one batch, the function computed in float."""
    program = program_for(plan, traced)
    sites = plan.grids()
    known = Constants.of(program.flat, traced.leaves)
    env = data_of(program, traced)

    def at(node: Node, values: list[Any], states: Any) -> tuple[list[Any], Any]:
        kind = kind_named(node.kind)
        outs = [env[node.out]] if node.kind == "input" else defined(node, values, known.value)
        if spans.ROLE in states.get(node.path, {}):
            joined = values if kind.joins else []
            operands = [x for v, x in zip(node.ins, joined, strict=False) if v in program.grids]
            states = measured(node, [*operands, *(known.value(bound) for _, bound in node.clips)], states)
        if isinstance(kind, Movement):
            return outs, states
        path = program.grids[node.out]
        site = sites[path]
        operand = layer_operand(site)
        x = _of_rank(outs[0], len(operand.shape))
        folded = {s.name: s.update(states[path]["output"][s.name], x, operand) for s in statistics_of(site)}
        return outs, {**states, path: {**states[path], "output": folded}}

    def measured(node: Node, values: list[Any], states: Any) -> Any:
        roles = states[node.path]
        return {**states, node.path: {**roles, spans.ROLE: spans.updated(roles[spans.ROLE], values)}}

    walked = {path: roles for path, roles in statistics.items() if path in sites or spans.ROLE in roles}
    warm(program, known)
    together = {**statistics, **evaluate(program.nodes, env, at, walked, known.value, measured)}
    for node, site, var in weight_places(plan, program):
        if site.kind != "leaf":
            before, x = together[node.path]["weight"], known.value(var)
            after = {s.name: s.update(before[s.name], x, layer_operand(site)) for s in statistics_of(site)}
            together[node.path] = {**together[node.path], "weight": after}
    return together


def warm(program: Placement, known: Constants) -> None:
    """Computes what nodes inside scans take from outside, outside."""
    for node, scope in program.everywhere():
        if scope:
            _hold([*(v for e in node.equations for v in e.ins), *node.details.values], known)


def _hold(values: Sequence[Value], known: Constants) -> None:
    for var in values:
        if not var.is_data:
            known.raw(var)


def simulation(
    plan: Plan,
    traced: Trace,
    qstate: QState,
    *,
    train: bool,
    key: Array | None,
    step: Array | None,
    codes: Mapping[str, Any],
    custom_vjp: str = "raise",
) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Returns flat results, the new states of weight leaves and those of grids and derived weights.

    The value of every node is that of the integer arithmetic; its gradient is that of the node's definition in float on
    dequantized operands, then of its grid's quantizer, for which what rounds to an end of the grid lies on it.

    Args:
        plan: the plan.
        traced: of this call.
        qstate: the states.
        train: whether the quantizers' training forms are used.
        key: for them.
        step: for them.
        codes: chosen for weights, by key.
        custom_vjp: ``"raise"`` where a function with its own gradient that a grid cuts in two is differentiated, or ``"body"``.
    """
    program, sites = program_for(plan, traced), plan.grids()
    states = {path: get(qstate, path, "output") for path in sites}

    def forward(site: Site, state: Any, x: Any, operand: Operand) -> QTensor:
        quantizer = quantizer_of(site)
        if not train:
            q = quantizer.quantize(state, x, operand)
            return with_codes(q, codes.get(site.key)) if site.is_weight else q
        now = None if key is None else site_key(key, f"{site.key}/{site.role}")
        return quantizer.train(state, x, operand, key=now, step=step)

    known, weights, changed = weights_of(plan, program, traced, qstate, forward, is_trained=train)
    is_exact = not train or all(_is_plain(q) for q in _quantizers(plan))
    grids = {path: grid_of(site, states[path]) for path, site in sites.items()}
    arithmetic = exact_arithmetic(plan, program, traced, weights, grids) if is_exact else None
    env = data_of(program, traced)
    warm(program, known)

    def at(node: Node, values: list[Any], after: Any) -> tuple[list[Any], Any]:
        kind = kind_named(node.kind)
        if isinstance(kind, Movement) and not kind.joins:
            x = values[0]
            return [x._replace(levels=y) for y in kind.moved(node, [x.levels], x.zero, known.value)], after
        path = program.grids[node.out]
        site, state = sites[path], states[path]
        assert site.spec is not None
        xs = [x.dequantize(v.dtype) if isinstance(x, Levels) else x for v, x in zip(node.ins, values, strict=True)]
        if node.kind == "input":
            y = env[node.out]
        else:
            y = defined(node, xs, lambda v: _at_operation(node, v, known, weights))[0]
            if custom_vjp == "raise":
                y = refusing_parts(node, y)
        placed = _of_rank(y, len(site.operand.shape))
        q = forward(site, state, _within(placed, site.spec, *grids[path]), layer_operand(site))
        levels = q.codes.reshape(y.shape)
        if arithmetic is not None and node.kind != "input":
            codes = [
                _codes(x, arithmetic.spec(v)) if isinstance(x, Levels) else x
                for v, x in zip(node.ins, values, strict=True)
            ]
            levels = straight_through(levels, arithmetic(node, codes)[0].astype(jnp.float32))
        if train and not isinstance(kind, Movement):
            after = {**after, path: {"output": after_batch(site, after[path]["output"], None, placed)}}
        return [Levels(levels, *_scalars(q))], after

    start = {path: {"output": state} for path, state in states.items()} if train else {}
    after = evaluate(program.nodes, env, at, start, known.value)
    outs = [env[v].dequantize(v.dtype) for v in program.outs]
    leaves = {path: state for path, state in changed.items() if path in plan.leaf_sites()}
    rest = {path: {"weight": state} for path, state in changed.items() if path not in leaves}
    for path, roles in after.items():
        rest.setdefault(path, {}).update(roles)
    return outs, leaves, rest


def _within(x: Array, spec: Spec, scale: Array, zero: Array) -> Array:
    """Returns values in float32, those up to half a step beyond a grid's ends on the ends: the same codes.

    The rounding of operands puts a value beyond a range that it cannot leave in float (`jax.nn.log_softmax` subtracts the
    largest), and that of zero points moves every range. To a quantizer that cuts the gradient beyond its range this would be
    clipping: that of a log_softmax in 8 bits was half of its size off. To one that cuts it on the ends (LSQ) nothing changes.
    """
    wide, step, zero = widened(x), lax.stop_gradient(scale), lax.stop_gradient(zero)
    level, low, high = lax.stop_gradient(wide) / step + zero, spec.format.low, spec.format.high
    # Not below the end in float32, and within the slack of `lowbit.core.gradients.inclusive`.
    end = (jnp.where(level < low, low, high) - zero) * step * (1.0 + 2.0**-21)
    is_near = ((level < low) & (level > low - 0.5)) | ((level > high) & (level < high + 0.5))
    return jnp.where(is_near, straight_through(wide, end), wide)


def _codes(value: Levels, spec: Spec) -> Array:
    levels = lax.stop_gradient(value.levels)
    return jnp.where(jnp.isnan(levels), value.zero, levels).astype(code_dtype(spec))  # as `QTensor.encode` has it


def _scalars(q: QTensor) -> tuple[Array, Array]:
    zero = jnp.zeros((), jnp.float32) if q.zero is None else q.zero.astype(jnp.float32).reshape(())
    return q.scale_values.reshape(()), zero


def grid_of(site: Site, state: Any) -> tuple[Array, Array]:
    """Returns the scale and zero point of a grid, float32 scalars."""
    operand = layer_operand(site)
    probe = jnp.zeros((1,) * len(operand.shape), operand.dtype)
    q = quantizer_of(site).quantize(state, probe, dataclasses.replace(operand, shape=probe.shape))
    return _scalars(q)


def _is_plain(quantizer: Quantizer) -> bool:
    return type(quantizer).train is Quantizer.train


def _quantizers(plan: Plan) -> list[Quantizer]:
    sites = [site for row in plan.rows for site in row.sites if site.quantizer is not None]
    return [quantizer_of(site) for site in (*sites, *plan.grids().values())]


def _of_rank(x: Any, rank: int) -> Any:
    """A value with as many axes as its grid's first, whose rank the scale has: behind a reshape it may have others."""
    return x if x.ndim == rank else x.reshape((1,) * (rank - 1) + (x.size,))


def _at_operation(node: Node, var: Value, known: Constants, weights: Mapping[str, QTensor]) -> Array:
    """The value of a constant at a node: the weight of an operation is on its grid."""
    if node.op is not None and node.path in weights and var is weight_of(node):
        return plain(weights[node.path])
    return known.value(var)


def exact_arithmetic(plan: Plan, program: Placement, traced: Trace, weights: Any, grids: Any) -> Arithmetic:
    """Returns the integer arithmetic on weights and grids, without gradients, its dots carried in float32."""
    weights, grids = lax.stop_gradient((weights, grids))
    leaves = lax.stop_gradient(list(traced.leaves[: traced.count]))
    known = Constants.of(program.flat, leaves)
    warm(program, known)
    specs = specs_of(plan)
    integers = constants(program, specs, known, weights, grids)
    return Arithmetic(
        program, specs, rounding_named(plan.rounding), integers, _weight_codes(weights), known, carried=True
    )


def specs_of(plan: Plan) -> dict[str, Spec]:
    """Returns the specs of the grids, by path."""
    return {path: site.spec for path, site in plan.grids().items() if site.spec is not None}


def _weight_codes(weights: Mapping[str, QTensor]) -> dict[str, QTensor]:
    return {path: unpack(q).encode() for path, q in weights.items()}


def full_integer(
    plan: Plan, traced: Trace, rounding: str, state: Any = (), refused_paths: frozenset[str] = frozenset()
) -> Plan:
    """Returns the plan with a grid for every tensor that crosses an operation.

    Args:
        plan: of rows alone.
        traced: what it was bound to.
        rounding: its name.
        state: the first argument, where that is a module's state and not data.
        refused_paths: operations that are refused already: nothing more is said of them.

    Raises:
        ValueError: for an equation that has no integer form, an operation left in float, or an unknown rounding.
    """
    rounding_named(rounding)
    refused = Refusals()
    refused.by_path = {path: Refusal("") for path in refused_paths}
    program = refused.attempt("", lambda: program_of(traced))
    if program is None:
        check_rows([row for row in plan.rows if not is_of_integers(row.sites[0])], refused)
        check_new(refused, refused_paths)
        raise Refused({}, "")
    kept = program.flat.inputs[traced.count :]
    for (keys, _), var in zip(jax.tree_util.tree_flatten_with_path(state)[0], kept, strict=False):
        if var in program.grids:
            name = leaf_path(keys)
            refused.add(
                name,
                f"integer=True: the model reads {name!r} of its state, which is neither a parameter nor data; fold batch "
                f"norms into the weights first (lowbit.rewrites)",
            )
    rows, steps = steps_of(program, plan.rows, refused, refused_paths)
    leaves = Plan(rows).leaf_sites()
    dropped = tuple(path for path in traced.paths if path not in leaves)
    return dataclasses.replace(plan, rows=rows, steps=steps, rounding=rounding, dropped=dropped)


@functools.lru_cache(maxsize=64)
def freezer(plan: Plan, traced: Trace) -> Callable[..., dict[str, Any]]:
    """Returns ``(params, qstate, codes) -> {path: integer constants}``: what packing adds to the weights.

    Args:
        plan: the plan.
        traced: a call of its function; its values are not read.
    """

    @jax.jit
    def freeze(params: Any, qstate: QState, codes: Mapping[str, Array]) -> dict[str, Any]:
        leaves = list(jax.tree.leaves(params))
        now = dataclasses.replace(traced, leaves=leaves)
        program = program_for(plan, now)

        def forward(site: Site, state: Any, x: Any, operand: Operand) -> QTensor:
            return with_codes(quantizer_of(site).quantize(state, x, operand), codes.get(site.key))

        _, weights, _ = weights_of(plan, program, now, qstate, forward)
        grids = {path: grid_of(site, get(qstate, path, "output")) for path, site in plan.grids().items()}
        return dict(exact_arithmetic(plan, program, now, weights, grids).numbers)

    return freeze


def execution(
    plan: Plan,
    traced: Trace,
    qparams: QParams,
    *,
    carried: bool,
    has_integer_io: bool,
    orders: Orders | None = None,
    is_named: bool = True,
) -> list[Any]:
    """Returns the flat results on packed parameters.

    Args:
        plan: the plan.
        traced: of this call.
        qparams: packed.
        carried: whether dots are computed on integers carried in float32, exactly, or on int8 codes.
        has_integer_io: whether the arguments are codes already, and the results stay codes.
        orders: of operations that run on the native kernels, by path.
        is_named: whether the float arithmetic at both ends is composites, which exports read and `jax.vmap` does not.
    """
    program, specs, orders = program_for(plan, traced), specs_of(plan), orders or {}
    known = Constants.of(program.flat, traced.leaves)
    weights = {}
    for node, site, var in weight_places(plan, program):
        if node.path not in orders:
            q = known.raw(var) if site.kind == "leaf" else qparams.sites[node.path]["weight"]
            weights[node.path] = q.merged()
    integers = qparams.sites

    def grid(var: Value) -> Grid:
        path = program.grids[var]
        return Grid(integers[path]["scale"], integers[path]["zero"], specs[path])

    arithmetic = Arithmetic(
        program, specs, rounding_named(plan.rounding), integers, _weight_codes(weights), known, carried=carried,
        natives=natives_of(program, orders, grid),
    )  # fmt: skip
    _warm_selected(program, known)
    floats = frozenset() if has_integer_io else floats_of(program, orders, grid)

    def enter(var: Value, x: Any) -> Any:
        path = program.grids[var]
        is_kept = has_integer_io or var in floats
        return x if is_kept else quantized(x, integers[path], specs[path], is_named=is_named)

    def leave(var: Value, x: Any) -> Any:
        return x if has_integer_io else dequantized(x, integers[program.grids[var]], var.dtype, is_named=is_named)

    return results(program, traced, known, arithmetic, enter, leave)


def _warm_selected(program: Placement, known: Constants) -> None:
    for node, scope in program.everywhere():
        if scope:
            _hold(kind_named(node.kind).held(node), known)


def boundary(plan: Plan, traced: Trace) -> tuple[Sequence[str], Sequence[str]]:
    """Returns the grids of the flat arguments ("" of those without) and of the flat results."""
    program = program_for(plan, traced)
    flat = program.flat
    return [program.grids.get(v, "") for v in flat.inputs[flat.count :]], [program.grids[v] for v in program.outs]
