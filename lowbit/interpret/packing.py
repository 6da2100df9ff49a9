"""`pack`: from trained parameters and states to bits."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.checks import not_finite
from lowbit.core.meshes import automatic
from lowbit.core.paths import flatten
from lowbit.interpret.trace import Args, Trace
from lowbit.packed import arguments
from lowbit.packed.belongs import checked
from lowbit.packed.bits import pack as pack_tensor
from lowbit.packed.trees import Dropped, QParams
from lowbit.plan.rows import Plan, Row, Site, Step

from . import large
from .codes import checked_codes, with_codes
from .derive import derivation
from .integer import spans
from .interpretation import interpretation_of
from .state import PARTS, QState, check_state, get, layer_operand, quantized_sites, quantizer_of
from .trace import Model, trace_planned


def pack(
    plan: Plan,
    params: Any,
    qstate: QState,
    codes: Mapping[str, Any] | None = None,
    *,
    fn: Model | None = None,
    args: Args = (),
    kwargs: Mapping[str, Any] | None = None,
) -> QParams:
    """Returns the packed model: `QTensor` leaves whose codes take their bits, and the ranges static inputs need.

    Args:
        plan: from `lowbit.bind`.
        params: trained parameters.
        qstate: from `lowbit.init`, `lowbit.calibrate` or training.
        codes: what a solver chose in place of the nearest codes: ``{site.key: integers in the shape of the weight}``, by the
            parameter's path, of a derived weight by its operation's. Weights that are not in it are rounded to nearest. Codes
            are what ``spec.format.encode`` makes of levels.
        fn: the function of a plan that was read from a file: derived weights and integer constants are computed by it.
        args: example arguments of ``fn``; only shapes and dtypes matter.
        kwargs: example keyword arguments of it.

    Raises:
        TypeError: for other types, or parameters that are packed already.
        ValueError: for learned widths or levels before `lowbit.harden`; if ``codes`` are not those of a grid (no such weight, another shape, no code of the format), the state is
            another plan's, a weight or a state holds NaN or infinity, a trained grid leaves a tensor that shares it hardly a
            level, or a scale is smaller than
            2**-126 (values are not checked under jit), or the plan came from a file and ``fn`` is needed, or has other operations.
    """
    arguments.check(plan=plan, params=params, kwargs=kwargs)
    check_state(plan, qstate)
    arguments.check_leaves(plan, params)
    for _, site in quantized_sites(plan):
        if not quantizer_of(site).is_hard:
            raise ValueError(
                f"the {site.role} of {site.key!r} has learned widths or levels ({site.method}), which no spec says yet: "
                f"plan, qstate = lowbit.harden(plan, qstate) comes before"
            )
    traced = _traced(plan, fn, params, args, kwargs)
    chosen = checked_codes(plan, codes)
    weights = _weights(plan, traced, params, qstate, chosen)
    for key in not_finite(weights):
        raise ValueError(f"weight {key!r} holds NaN or infinity: it cannot be packed")
    for key in not_finite({key: [qstate[part][key] for part in PARTS] for key in qstate["fixed"]}):
        raise ValueError(
            f"the state of {key!r} holds NaN or infinity: training diverged; go back to a state that is finite"
        )
    states = {_name(site): get(qstate, site.key, site.role) for _, site in quantized_sites(plan)}
    spans.check(plan, qstate)
    tensors = {
        _name(site): large.packed(site, states[_name(site)], weights[site.key], chosen.get(site.key))
        for _, site in quantized_sites(plan)
        if site.is_weight and site.kind == "leaf" and large.is_large(weights[site.key])
    }
    tensors |= _packer(plan, frozenset(tensors))(weights, states, chosen)
    sites = plan.leaf_sites()

    def leaf(path: str, x: Any) -> Any:
        if path in plan.dropped and not jnp.issubdtype(x.dtype, jax.dtypes.extended):  # keys of random streams stay
            return Dropped(tuple(x.shape), str(x.dtype))
        return tensors[_name(sites[path])] if path in sites else x

    paths, leaves, tree = flatten(params)
    packed = jax.tree.unflatten(tree, [leaf(path, x) for path, x in zip(paths, leaves, strict=True)])
    by_path: dict[str, dict[str, Any]] = {}
    for row, site in quantized_sites(plan):
        if site.kind not in ("leaf", "grid"):
            by_path.setdefault(row.path, {})[site.role] = tensors[_name(site)]
    for path, integers in interpretation_of(plan).constants(plan, traced, params, qstate, chosen).items():
        by_path[path] = {**by_path.get(path, {}), **integers}
    return checked(QParams(packed, by_path, plan.fingerprint))


def _traced(plan: Plan, fn: Model | None, params: Any, args: Args, kwargs: Mapping[str, Any] | None) -> Any:
    """What the plan was bound to, or another trace of its function; None where neither is needed."""
    if fn is not None:
        traced = trace_planned(fn, plan, params, args, dict(kwargs or {}))
        return traced.bare
    why = interpretation_of(plan).needs_program(plan)
    if plan.program is not None or not why:
        return plan.program
    raise ValueError(
        f"{why} the traced function, which a plan read from a file does not hold: pass fn=, args=, or bind again"
    )


def _name(site: Site) -> str:
    return f"{site.key}:{site.role}"


def _weights(plan: Plan, traced: Trace | None, params: Any, qstate: QState, codes: Mapping[str, Any]) -> dict[str, Any]:
    """The float values of every quantized weight; derived ones computed here, once."""
    leaves = dict(zip(*flatten(params)[:2], strict=True))
    weights, derived = {}, None
    for row, site in quantized_sites(plan):
        if not site.is_weight:
            continue
        if site.kind == "leaf":
            weights[site.key] = leaves[site.key]
            continue
        if derived is None:
            assert traced is not None  # `_traced` has one where a weight is derived
            derived = derivation(traced, plan.rows)(_as_served(plan, params, qstate, codes))
        weights[site.key] = derived[row.path]
    return weights


def _as_served(plan: Plan, params: Any, qstate: QState, codes: Mapping[str, Any]) -> Any:
    """The parameters, leaves that an operation uses as they are with the values they are served with.

    Simulation computes with those wherever such a leaf is used, so a weight derived from it is derived from those.
    """
    used = {leaf for _, site in quantized_sites(plan) if site.kind == "derived" for leaf in site.leaves}
    sites = {path: site for path, site in plan.leaf_sites().items() if path in used}

    def value(path: str, x: Any) -> Any:
        site = sites.get(path)
        if site is None:
            return x

        def served(state: QState, x: Any, codes: Any) -> Any:
            return with_codes(quantizer_of(site).quantize(state, x, site.operand), codes).dequantize()

        return automatic(served, get(qstate, site.key, site.role), x, codes.get(path), like=x)

    paths, leaves, tree = flatten(params)
    return jax.tree.unflatten(tree, [value(path, x) for path, x in zip(paths, leaves, strict=True)])


@functools.lru_cache(maxsize=256)
def _packer(plan: Plan, without: frozenset[str] = frozenset()) -> Callable[..., dict[str, Any]]:
    """Returns ``(weights, states, codes) -> {site: QTensor, or the range of an input}`` of all sites but some: one program."""

    @jax.jit
    def run(weights: Mapping[str, Any], states: Mapping[str, QState], codes: Mapping[str, Any]) -> dict[str, Any]:
        return {
            _name(site): _weight(row, site, states[_name(site)], weights[site.key], codes.get(site.key))
            if site.is_weight
            else _input(row, site, states[_name(site)])
            for row, site in quantized_sites(plan)
            if site.kind != "grid" and _name(site) not in without
        }

    return run


def _weight(row: Row | Step, site: Site, state: QState, x: Any, codes: Any) -> Any:
    quantizer, is_leaf = quantizer_of(site), site.kind == "leaf"
    stack = () if is_leaf else row.stack

    def encode(state: QState, x: Any) -> Any:
        return quantizer.encode(state, x, layer_operand(site) if stack else site.operand)

    for _ in stack:
        encode = jax.vmap(encode)

    def packed(state: QState, x: Any, codes: Any) -> Any:
        encoded = encode(state, x)
        encoded = encoded if codes is None else dataclasses.replace(encoded, codes=codes)
        return pack_tensor(encoded, site.operand.contract, site.operand.stack)

    return automatic(packed, state, x, codes, like=x)


def _input(row: Row | Step, site: Site, state: QState) -> dict[str, Any]:
    """What an input is served with: scale and zero point, read off the quantizer's own grid; none if dynamic.

    Where the quantizer's own code serves it, the quantizer's state.
    """
    assert site.spec is not None
    if site.own_code:
        return dict(state)
    if site.spec.dynamic:
        return {}
    quantizer, operand = quantizer_of(site), layer_operand(site)
    probe = jnp.zeros((1,) * len(operand.shape), operand.dtype)

    def grid(state: QState) -> dict[str, Any]:
        q = quantizer.quantize(state, probe, dataclasses.replace(operand, shape=probe.shape))
        return {"scale": q.scale_values} if q.zero is None else {"scale": q.scale_values, "zero": q.zero}

    for _ in row.stack:
        grid = jax.vmap(grid)
    return grid(state)
