"""`simulate`: the model on the grid it will be served on, differentiable."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lowbit.core.keywords import merged, shares_keywords
from lowbit.core.meshes import automatic
from lowbit.core.qtensor import QTensor
from lowbit.core.quantizer import Quantizer
from lowbit.core.spec import Operand
from lowbit.packed import arguments
from lowbit.plan.rows import Plan, Site
from lowbit.program.compat import rebind

from .arithmetic import is_integer_pair, result_dtype, simulated
from .codes import checked_codes, with_codes
from .integer.interpretations import simulation as integer_simulation
from .lookup import lookup
from .operations import Operation
from .ranks import fitted, with_axes
from .sides import weight_right
from .state import (
    CODES,
    QState,
    carried_states,
    check_state,
    get,
    has_no_values,
    layer_operand,
    marked,
    put,
    quantized_sites,
    quantizer_of,
    site_key,
    with_spans_from,
)
from .switch import watched
from .trace import Model, Trace, trace_planned
from .walk import Walk, plain


def simulate(
    fn: Model,
    plan: Plan,
    *,
    train: bool = False,
    custom_vjp: str = "raise",
    codes: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Returns ``run(params, qstate, *args, **kwargs)``: ``fn`` with every planned operation on its grid.

    Operations whose operands are both integers accumulate exactly and share one epilogue with `lowbit.execute`: the
    results agree to the last bit. Other quantized operations dequantize and accumulate in float. Gradients pass
    straight through, as each quantizer says; in a full-integer plan what rounding alone puts beyond a grid, by half a step
    at most, counts as its end. Where no operation is quantized this is ``jax.jit(fn)``.

    Args:
        fn: the function the plan was bound for, or another with the same operations (training and evaluation).
        plan: from `lowbit.bind`.
        train: use the quantizers' training forms; ``run`` then takes ``key=`` and ``step=`` and returns
            ``(y, qstate')``. A model's own ``key`` or ``step`` goes in ``kwargs={...}``, which ``run`` always takes.
            Without it, differentiating ``run`` warns where a quantizer trains in another form than it serves, or keeps a
            state while training.
        custom_vjp: ``"raise"`` if a quantized operation lies inside a function with its own gradient, or ``"body"`` to
            differentiate the body instead. In a full-integer plan, where a grid lies inside such a function, differentiating
            it raises.
        codes: what a solver chose in place of the nearest codes, as for `lowbit.pack`: ``run`` is then what
            ``lowbit.execute`` of ``lowbit.pack(plan, params, qstate, codes)`` is. Gradients reach parameters straight through,
            and scales as the chosen levels have them. Other codes of the same plan compile nothing.

    Returns:
        A function, jitted inside and cached by ``(fn, plan)`` and shapes: a second call compiles nothing.

    Raises:
        TypeError: at the call, for a keyword that could be lowbit's and the model's (`lowbit.core.keywords`); for codes that are
            not integers.
        ValueError: at the call, if the traced operations differ from the plan, or ``qstate`` is another plan's; for codes that
            `lowbit.pack` refuses, or codes beside ``train=True``.
    """
    if custom_vjp not in ("raise", "body"):
        raise ValueError(f"custom_vjp must be 'raise' or 'body', got {custom_vjp!r}")
    arguments.check(fn=fn, plan=plan, train=train)
    if codes is None:
        return _simulator(fn, plan, train=train, custom_vjp=custom_vjp)
    if train:
        raise ValueError("codes= are fixed, and train=True rounds anew: leave one of the two out")
    return functools.partial(
        _simulator(fn, plan, train=False, custom_vjp=custom_vjp, has_codes=True), checked_codes(plan, codes)
    )


@functools.lru_cache(maxsize=256)
def _simulator(fn: Model, plan: Plan, *, train: bool, custom_vjp: str, has_codes: bool = False) -> Callable[..., Any]:
    @jax.jit
    def compiled(params, qstate, args, kwargs, key, step, codes):
        y, after = simulation(
            fn, plan, params, qstate, args, kwargs, train=train, key=key, step=step, custom_vjp=custom_vjp, codes=codes
        )
        return (y if train else watched(plan, y)), after

    def checked(params: Any, qstate: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        arguments.check(params=params)
        check_state(plan, qstate)
        arguments.check_leaves(plan, params)
        arguments.check_call(fn, params, args, kwargs)
        return kwargs

    if train:

        @shares_keywords("lowbit.simulate(train=True)", fn)
        def run_train(params, qstate, /, *args, key: Array | None = None, step: Any = None, kwargs=None, **keywords):
            arguments.check(key=key)
            given = checked(params, qstate, args, merged(keywords, kwargs))
            step = None if step is None else jnp.asarray(step, jnp.int32)
            return compiled(params, qstate, args, given, key, step, {})

        return run_train

    if has_codes:

        @shares_keywords("lowbit.simulate", fn)
        def run_chosen(codes, params, qstate, /, *args, kwargs=None, **keywords):
            given = checked(params, qstate, args, merged(keywords, kwargs))
            return compiled(params, qstate, args, given, None, None, codes)[0]

        return run_chosen

    @shares_keywords("lowbit.simulate", fn)
    def run(params, qstate, /, *args, kwargs=None, **keywords):
        given = checked(params, qstate, args, merged(keywords, kwargs))
        return compiled(params, qstate, args, given, None, None, {})[0]

    return run


def simulation(
    fn: Model,
    plan: Plan,
    params: Any,
    qstate: QState,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    train: bool = False,
    key: Array | None = None,
    step: Array | None = None,
    custom_vjp: str = "raise",
    codes: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Returns ``(y, qstate')`` of one simulated call; `simulate` is this under jit."""
    check_state(plan, qstate)
    traced = trace_planned(fn, plan, params, args, dict(kwargs))
    if not plan.quantized:
        return fn(params, *args, **kwargs), (_collected(plan, {}, {}) if train else qstate)
    return simulated_trace(plan, traced, qstate, train=train, key=key, step=step, custom_vjp=custom_vjp, codes=codes)


def simulated_trace(
    plan: Plan,
    traced: Trace,
    qstate: QState,
    *,
    train: bool = False,
    key: Array | None = None,
    step: Array | None = None,
    custom_vjp: str = "raise",
    codes: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Returns `simulation` of a call that is traced already, and has a quantized operation; ``codes`` are checked."""
    codes = codes or {}
    if plan.is_full_integer:
        like = list(traced.jaxpr.out_avals), None, None

        def run(leaves: list[Any], qstate: QState, codes: Any, key: Array | None, step: Array | None) -> Any:
            now = dataclasses.replace(traced, leaves=leaves)
            return integer_simulation(
                plan, now, qstate, train=train, key=key, step=step, updated=_updated, codes=codes, custom_vjp=custom_vjp
            )

        outs, changed, sites = automatic(run, traced.leaves, qstate, codes, key, step, like=like)
        result = jax.tree.unflatten(traced.out_tree, outs)
        return result, (with_spans_from(_collected(plan, changed, sites), qstate) if train else qstate)
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
                    functools.partial(_updated, site), state, {"values": leaves[i]}, like=leaves[i]
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
                    after[site.role] = _updated(site, states[site.role], None, x)
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
    return result, (_collected(plan, updates, with_axes(fit, plan, sites)) if train else qstate)


def compute(op: Operation, left: Any, right: Any) -> Any:
    """Returns the operation on its operands, quantized or not: levels in, the result in its own dtype out."""
    eqn = op.eqn
    if op.is_lookup:
        return lookup(eqn, left, right) if isinstance(left, QTensor) else op.rebind([left, right])
    if is_integer_pair(left, right):
        sides = weight_right(eqn, op.weight)
        return sides.restore(_simulated(sides.matmul, *sides.operands(left, right), result_dtype(eqn)))
    return rebind(eqn, [plain(left), plain(right)])[0]


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


# Inner jits, inlined by the compiler: layers alike are traced, and differentiated, once. 60 dense layers: 7 -> 2 times float.
_simulated = jax.jit(simulated, static_argnums=(0, 3))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _quantized(quantizer: Quantizer, operand: Operand, state: Any, x: Array) -> QTensor:
    return quantizer.quantize(state, x, operand)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _trained(
    quantizer: Quantizer, operand: Operand, state: Any, x: Array, key: Array | None, step: Array | None
) -> QTensor:
    return quantizer.train(state, x, operand, key=key, step=step)


def _updated(site: Site, state: Any, stats: Any, x: Any = None) -> Any:
    """The state after one training batch: statistics of this batch, given to the quantizer's ``update``."""
    quantizer = quantizer_of(site)
    if stats is None and has_no_values(x):
        return state
    if stats is None:
        operand = layer_operand(site)
        if site.is_weight:
            stats = {"values": x}
        else:
            x = jax.lax.stop_gradient(x)
            stats = {s.name: s.finish(s.update(s.init(operand), x, operand)) for s in quantizer.needs(operand)}
    return quantizer.update(state, stats)


def _mean_over(sites: dict[str, Any], axis_names: tuple[str, ...]) -> dict[str, Any]:
    return jax.tree.map(lambda x: jax.lax.pmean(x, axis_names), sites)


def _collected(plan: Plan, leaves: Mapping[str, Any], sites: Mapping[str, Any]) -> dict[str, Any]:
    parts: dict[str, Any] = {"learn": {}, "fixed": {}}
    for row, site in quantized_sites(plan):
        put(parts, site.key, site.role, leaves[site.key] if site.kind == "leaf" else sites[row.path][site.role])
    return marked(plan, parts)
