"""`bind`: rules meet the model, once; the result is the plan."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.quantizer import Quantizers
from lowbit.core.spec import Operand
from lowbit.packed import arguments
from lowbit.plan import match
from lowbit.plan.rows import Plan, Row, Site

from .arithmetic import Matmul, contracted_size
from .derive import derivation, dropped_leaves
from .graph import Data, Graph, Operation, Weight, contraction, leaf_contraction
from .integer.fixed import ROUNDINGS
from .integer.interpretations import full_integer
from .integer.long import MOST
from .layout import reach_of_spec
from .simulate import simulation
from .state import abstract_state
from .trace import Model, Trace, trace


def bind(
    fn: Model,
    rules: Mapping[str, Any],
    params: Any,
    *args: Any,
    integer: bool = False,
    rounding: str = "exact",
    **kwargs: Any,
) -> Plan:
    """Returns the plan: which operations of ``fn(params, *args, **kwargs)`` are quantized, and how.

    Args:
        fn: a pure function of ``(params, *args)``; `lowbit.linen` and `lowbit.nnx` make one from a module.
        rules: ``{glob over operation paths: rule text, quantizers, or "keep"}``; the first match wins. Empty is legal.
        params: the parameters (arrays, tracers or `jax.ShapeDtypeStruct`).
        *args: example arguments; only shapes and dtypes matter.
        integer: whether every tensor that crosses an operation gets a grid, so that the model is served and exported
            without floats. Rules must then cover every operation, with weights of at most 8 bits and inputs of at most 8, or of
            16 (``aint16``).
        rounding: of a full-integer plan, where products are cut back to a grid: ``"exact"``, ``"tflite_single"`` or
            ``"gemmlowp_double"``.
        **kwargs: example keyword arguments.

    Returns:
        The plan; ``print(plan)`` shows it.

    Raises:
        TypeError: for rules of a wrong type, or parameters that are not arrays.
        ValueError: for a rule that matches nothing, a rule text that does not parse, an operation that mixes parameters
            with data and has no rule of its own, a shared weight whose operations disagree, a sum that may overflow
            int32, or a group that does not line up with how a weight is reshaped. With ``integer``: for an equation
            that has no integer form, with its source line, or an operation left in float.

    Example:
        >>> plan = bind(lambda p, x: x @ p["w"], {"**": "w4,a8"}, {"w": jnp.ones((8, 4))}, jnp.ones((2, 8)))
        >>> [(row.path, row.rule) for row in plan]
        [('w', '**: w4,a8')]
    """
    arguments.check(fn=fn, params=params, integer=integer)
    if not isinstance(rounding, str) or rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    typed = match.read(rules)
    arguments.check_call(fn, params, args, kwargs)
    traced = trace(fn, params, args, kwargs)
    graph = traced.graph
    chosen = match.first_matches(typed, [op.path for op in graph.operations])
    rows = tuple(_row(op, graph, traced, chosen[op.path], integer=integer) for op in graph.operations)
    _check_shared(rows)
    _warn_constants(rows)
    derived = derivation(traced, rows)
    dropped = dropped_leaves(traced, rows) if derived is not None else ()
    plan = Plan(rows, tuple(graph.unseen), dropped, derived)
    if integer:
        state = args[0] if getattr(fn, "takes_state", False) and args else ()
        plan = full_integer(plan, traced, rounding, state)
    elif rounding != "exact":
        raise ValueError(f"rounding={rounding!r} is for full-integer plans: pass integer=True")
    _check_moves(fn, plan, params, args, kwargs)
    return plan


def _row(op: Operation, graph: Graph, traced: Trace, rule: match.Rule | None, *, integer: bool) -> Row:
    quantizers = rule.quantizers if rule else Quantizers()
    mixed = [i for i in range(2) if isinstance(op.kinds[i], Data) and op.kinds[i].is_mixed]  # pyright: ignore[reportAttributeAccessIssue]
    if mixed and rule is not None and not rule.is_specific and rule.quantizers != Quantizers():
        raise ValueError(
            f"{op.path} ({op.source}): operand {mixed[0]} mixes parameters with data, so it is neither "
            f"a weight nor an input; name it in a rule of its own, or {op.path!r}: 'keep'"
        )
    sites = tuple(_site(op, i, graph, traced, quantizers) for i in range(2))
    _check_overflow(op, sites, integer=integer)
    return Row(
        path=op.path,
        primitive=op.eqn.primitive.name,
        sites=sites,  # pyright: ignore[reportArgumentType]
        stack=op.stack,
        rule=rule.text if rule else "(no rule)",
        feature_groups=op.eqn.params.get("feature_group_count", 1),
        macs=_macs(op.eqn) * math.prod(op.stack),
        source=op.source,
    )


def _site(op: Operation, index: int, graph: Graph, traced: Trace, quantizers: Quantizers) -> Site:
    kind, eqn = op.kinds[index], op.eqn
    aval = eqn.invars[index].aval
    depth = len(op.stack)
    if isinstance(kind, Weight):
        shape = tuple(traced.jaxpr.jaxpr.invars[kind.leaf].aval.shape)
        dtype = str(traced.jaxpr.jaxpr.invars[kind.leaf].aval.dtype)
        contract = leaf_contraction(eqn, index, kind)
        assert contract is not None
        present = {axis for atoms in kind.axes for axis, _ in atoms}
        stack = next((i for i, n in enumerate(shape) if i in present or n == 1), len(shape))
        path = graph.leaves[kind.leaf]
        operand = Operand(shape, dtype, contract, stack, is_weight=True)
        return _with(Site("weight", "leaf", path, (path,), operand), quantizers.weight)
    contract = tuple(i + depth for i in contraction(eqn, index))
    if isinstance(kind, Data):
        role = "input" if any(not isinstance(k, Data) for k in op.kinds) else ("lhs", "rhs")[index]
        operand = Operand((*op.stack, *[0] * len(aval.shape)), str(aval.dtype), contract, depth, is_weight=False)
        site = Site(role, "mixed" if kind.is_mixed else "input", op.path, (), operand)
        return site if eqn.primitive.name == "gather" else _with(site, quantizers.input)
    operand = Operand((*op.stack, *aval.shape), str(aval.dtype), contract, depth, is_weight=True)
    leaves = tuple(sorted(graph.leaves[i] for i in kind.leaves))
    return _with(Site("weight", "derived" if leaves else "constant", op.path, leaves, operand), quantizers.weight)


def _with(site: Site, quantizer: Any) -> Site:
    if quantizer is None:
        return site
    spec = quantizer.spec
    if not site.is_weight and not spec.dynamic and spec.granularity.text != "tensor":
        raise ValueError(
            f"{site.key}: a stored input scale is per tensor, got /{spec.granularity.text}; use /tensor, or /dynamic for "
            f"one scale per row"
        )
    if not jnp.issubdtype(jnp.dtype(site.operand.dtype), jnp.floating):
        raise ValueError(f"{site.key}: only float operands can be quantized, its {site.role} is {site.operand.dtype}")
    spec.granularity.blocks(site.operand)
    return dataclasses.replace(site, spec=spec, quantizer=quantizer)


def _macs(eqn: Any) -> int:
    if eqn.primitive.name == "gather":
        return 0
    left, right = (v.aval for v in eqn.invars)
    return math.prod(eqn.outvars[0].aval.shape) * contracted_size(Matmul.of(eqn), left, right)


def _check_overflow(op: Operation, sites: tuple[Site, ...], *, integer: bool) -> None:
    specs = [site.spec for site in sites]
    if op.eqn.primitive.name == "gather" or not all(s is not None and s.format.is_integer for s in specs):
        return
    left, right = specs
    assert left is not None
    assert right is not None
    count = contracted_size(Matmul.of(op.eqn), *(v.aval for v in op.eqn.invars))
    if integer and max(left.format.bits, right.format.bits) > 8:
        if reach_of_spec(left) * reach_of_spec(right) * count > MOST:
            most = int(MOST / reach_of_spec(left) / reach_of_spec(right))
            raise ValueError(
                f"{op.path}: the sum of {count} products of {left.text} and {right.text} passes 38 bits; integer=True adds "
                f"up to {most} of them: use fewer bits on either side"
            )
        return
    if right.format.bits > 8:
        raise ValueError(f"{op.path}: 16 bits are for the left operand; quantize the right one to 8 bits or less")
    reach = (256.0 if left.format.bits > 8 else reach_of_spec(left)) * reach_of_spec(right)
    if reach * count >= 2.0**31:
        raise ValueError(
            f"{op.path}: {count} products of up to {reach:.0f} may pass int32; use fewer bits on either side"
        )


def _check_shared(rows: tuple[Row, ...]) -> None:
    first: dict[str, tuple[Row, Site]] = {}
    for row in rows:
        for site in row.sites:
            if site.kind != "leaf":
                continue
            if site.key not in first:
                first[site.key] = row, site
                continue
            other, before = first[site.key]
            if site.quantizer != before.quantizer:
                raise ValueError(
                    f"{other.path} and {row.path} share the weight {site.key} but have different rules "
                    f"({other.rule!r} and {row.rule!r}); one weight is stored once: give both the same weight part"
                )
            per_tensor = site.spec is None or site.spec.granularity.text == "tensor"
            if not per_tensor and (site.operand.contract, site.operand.stack) != (
                before.operand.contract,
                before.operand.stack,
            ):
                raise ValueError(
                    f"{other.path} and {row.path} share the weight {site.key} but contract different axes "
                    f"({before.operand.contract} and {site.operand.contract} of {site.operand.shape}), so no channel "
                    f"scale serves both: use w<bits>/tensor for both, or keep one"
                )


def _warn_constants(rows: tuple[Row, ...]) -> None:
    constants = [
        row.path for row in rows if any(site.kind == "constant" and site.spec is not None for site in row.sites)
    ]
    if constants:
        warnings.warn(
            f"{', '.join(constants)}: the weight is an array the function closed over, not a parameter; it is "
            f"quantized but cannot be trained. Pass it in params, or give it the rule 'keep'",
            stacklevel=3,
        )


def _check_moves(fn: Model, plan: Plan, params: Any, args: Any, kwargs: Any) -> None:
    """Runs a simulation abstractly, so that a scale that cannot follow its weight raises here."""
    if not plan.quantized:
        return

    def run(params, args, kwargs):
        state = abstract_state(plan, params)
        return simulation(fn, plan, params, state, args, kwargs, custom_vjp="body")[0]

    jax.eval_shape(run, params, args, kwargs)
