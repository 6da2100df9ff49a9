"""`bind`: rules meet the model, once; the result is the plan."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp

from lowbit.core.keywords import merged, shares_keywords
from lowbit.core.marks import takes_state
from lowbit.core.quantizer import Quantizers
from lowbit.core.spec import Operand
from lowbit.packed import arguments
from lowbit.plan import match
from lowbit.plan.rows import Plan, Row, Site, Uncovered

from .derive import dropped_leaves, has_derived
from .integer.fixed import ROUNDINGS
from .integer.interpretations import full_integer
from .integer.long import MOST
from .interpretation import interpretation_of
from .kinds import Address, Data, Derived, Picked, Weight, contraction, leaf_contraction
from .layout import reach_of_spec
from .matmul import Matmul
from .operations import Inventory, Operation
from .placed import check_shared
from .refusals import Refusals
from .shapes import axes_of, cuts_of, flipped_of, geometry, producers_of, shape_of
from .sides import weight_right
from .sums import contracted_size
from .trace import Model, Trace, trace


@shares_keywords("lowbit.bind")
def bind(
    fn: Model,
    rules: Mapping[str, Any],
    params: Any,
    *args: Any,
    integer: bool = False,
    rounding: str = "exact",
    kwargs: Mapping[str, Any] | None = None,
    **keywords: Any,
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
        kwargs: example keyword arguments, whatever their names: ``integer`` and ``rounding`` too.
        **keywords: example keyword arguments.

    Returns:
        The plan; ``print(plan)`` shows it.

    Raises:
        TypeError: for rules of a wrong type, parameters that are not arrays, ``integer`` that is no boolean, or a keyword
            that could be bind's and the model's (`lowbit.core.keywords`).
        ValueError: for a rule that matches nothing, a rule text that does not parse, an operation that mixes parameters
            with data and has no rule of its own, a shared weight whose operations disagree, a sum that may overflow
            int32, or a group that does not line up with how a weight is reshaped. With ``integer``: for an equation
            that has no integer form, with its source line, or an operation left in float.

    Example:
        >>> plan = bind(lambda p, x: x @ p["w"], {"**": "w4,a8"}, {"w": jnp.ones((8, 4))}, jnp.ones((2, 8)))
        >>> [(row.path, row.rule) for row in plan]
        [('w', '**: w4,a8')]
    """
    kwargs = merged(keywords, kwargs)
    arguments.check(fn=fn, params=params, integer=integer)
    if not isinstance(rounding, str) or rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    typed = match.parse_rules(rules)
    arguments.check_call(fn, params, args, kwargs)
    traced = trace(fn, params, args, kwargs, has_picks=not integer)
    chosen = match.first_matches(typed, [op.path for op in traced.inventory.operations])
    state = args[0] if takes_state(fn) and args else ()
    return planned(traced, chosen, integer=integer, rounding=rounding, state=state, rules=rules)


def planned(
    traced: Trace,
    chosen: Mapping[str, match.Rule | None],
    *,
    integer: bool,
    rounding: str,
    state: Any = (),
    rules: Mapping[str, Any] | None = None,
) -> Plan:
    """Returns the plan of a trace, checked.

    Args:
        traced: the trace.
        chosen: the rule of every operation, by path.
        integer: as in `bind`.
        rounding: as in `bind`.
        state: the first argument, where that is a module's state and not data.
        rules: what the rules were chosen from, for a message that can be pasted.

    Raises:
        ValueError: everything that `bind` refuses, all of it at once.
    """
    inventory = traced.inventory
    globs = {path: None if rule is None else rule.glob for path, rule in chosen.items()}
    refused = Refusals(rules, globs)
    producers = producers_of(inventory)
    rows: list[Row] = []
    tables: dict[Address, str] = {}  # look-ups that quantize what they pick from
    for op in inventory.operations:
        why = _why_left_out(op, chosen[op.path], tables, integer=integer)
        make = partial(_row, op, inventory, traced, chosen[op.path], producers[op.path], integer=integer, left_out=why)
        row = refused.attempt(op.path, make, {} if integer else {op.path: "keep"}, source=op.source)
        rows.append(_row(op, inventory, traced, None, producers[op.path], integer=integer) if row is None else row)
        if op.is_lookup and rows[-1].sites[0].spec is not None:
            tables[op.address] = op.path
    check_shared(rows, refused, rules or {}, globs)
    plan = Plan(tuple(rows), tuple(inventory.unseen), program=traced.bare)
    if integer:
        plan = (
            refused.attempt("", partial(full_integer, plan, traced, rounding, state, frozenset(refused.by_path)))
            or plan
        )
    elif rounding != "exact":
        raise ValueError(f"rounding={rounding!r} is for full-integer plans: pass integer=True")
    if plan.quantized and plan.is_full_integer == integer:
        interpretation_of(plan).check(plan, traced, refused)
    refused.check()
    _warn_constants(plan.rows)
    if not integer and has_derived(plan.rows):
        plan = dataclasses.replace(plan, dropped=dropped_leaves(traced, plan.rows))
    return dataclasses.replace(plan, uncovered=_uncovered(plan, traced))


def _uncovered(plan: Plan, traced: Trace) -> tuple[Uncovered, ...]:
    covered = {path for row in plan.rows for site in row.sites for path in site.leaves} | set(plan.dropped)
    avals = [var.aval for var in traced.jaxpr.jaxpr.invars]
    return tuple(
        Uncovered(path, math.prod(aval.shape) * aval.dtype.itemsize, tuple(traced.inventory.uses.get(i, ())))
        for i, (path, aval) in enumerate(zip(traced.paths, avals, strict=False))
        if path not in covered
    )


def _row(
    op: Operation,
    inventory: Inventory,
    traced: Trace,
    rule: match.Rule | None,
    producers: tuple[str, ...],
    *,
    integer: bool,
    left_out: str = "",
) -> Row:
    quantizers = Quantizers() if rule is None or left_out else rule.quantizers
    mixed = [i for i in range(2) if isinstance(op.kinds[i], Data) and op.kinds[i].is_mixed]  # pyright: ignore[reportAttributeAccessIssue]
    if mixed and rule is not None and not rule.is_specific and quantizers != Quantizers():
        raise ValueError(
            f"{op.path} ({op.source}): operand {mixed[0]} mixes parameters with data, so it is neither "
            f"a weight nor an input; name it in a rule of its own, or {op.path!r}: 'keep'"
        )
    sites = tuple(
        dataclasses.replace(
            _site(op, i, inventory, traced, quantizers),
            shape=shape_of(op, i),
            axes=axes_of(op, i),
            flipped=flipped_of(op, i),
            cuts=cuts_of(op, i),
        )
        for i in range(2)
    )
    _check_overflow(op, sites, integer=integer)
    return Row(
        path=op.path,
        primitive=op.primitive,
        sites=sites,  # pyright: ignore[reportArgumentType]
        stack=op.stack,
        rule=f"{rule.text}: {left_out}" if rule and left_out else rule.text if rule else "(no rule)",
        feature_groups=op.eqn.params.get("feature_group_count", 1),
        batch=_weight_batch(op),
        macs=_macs(op) * math.prod(op.stack),
        source=op.source,
        geometry=geometry(op),
        producers=producers,
        own_gradient=op.own_gradient,
        operation=op,
    )


_LEFT_OUT = "left in float"


def _why_left_out(op: Operation, rule: match.Rule | None, tables: Mapping[Address, str], *, integer: bool) -> str:
    """Returns why a rule of wildcards alone passes an operation over, or "": a rule that names it does not.

    Integers have no grid. A product without a contraction shares no scale between the terms of a sum, and a constant was
    fixed by whoever wrote it: neither is what a rule for all layers is about. What data picked was rounded in its table: as an
    operand it would be rounded twice. A full-integer plan covers these three.
    """
    if rule is None or rule.is_specific or rule.quantizers == Quantizers():
        return ""
    eqn = op.eqn
    integers = [v.aval.dtype for v in eqn.invars[: 1 if op.is_lookup else 2] if not _is_float(v.aval.dtype)]
    if integers:
        return f"not for {integers[0]}"
    if integer:
        return ""
    if not op.is_lookup and not contraction(eqn, 0):
        return f"{_LEFT_OUT}, it has no contraction"
    if any(k == Derived(varies=k.varies) for k in op.kinds if isinstance(k, Derived)):
        return f"{_LEFT_OUT}, its weight is a constant"
    picked = {tables[a]: None for k in op.kinds if isinstance(k, Data) for a in sorted(k.drawn) if a in tables}
    if op.weight is None and picked and rule.quantizers.input is not None:
        return f"{_LEFT_OUT}, it multiplies what is picked from {', '.join(picked)}, and rounded there"
    return ""


def _is_float(dtype: jnp.dtype) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating))


def _weight_batch(op: Operation) -> tuple[int, ...]:
    """The batch axes of a dot's weight, in leaf coordinates for leaves."""
    if op.weight is None or op.eqn.primitive.name != "dot_general":
        return ()
    axes, kind = op.eqn.params["dimension_numbers"][1][op.weight], op.kinds[op.weight]
    if isinstance(kind, Weight | Picked):  # what was picked is counted by axes that are not the leaf's
        return tuple(sorted({axis for i in axes for axis, _ in kind.axes[i] if axis >= 0}))
    return tuple(sorted(i + len(op.stack) for i in axes))


def _site(op: Operation, index: int, inventory: Inventory, traced: Trace, quantizers: Quantizers) -> Site:
    kind, eqn = op.kinds[index], op.eqn
    aval = eqn.invars[index].aval
    depth = len(op.stack)
    if isinstance(kind, Weight | Picked):
        shape = tuple(traced.jaxpr.jaxpr.invars[kind.leaf].aval.shape)
        dtype = str(traced.jaxpr.jaxpr.invars[kind.leaf].aval.dtype)
        contract = leaf_contraction(eqn, index, kind.axes, op.picked)
        assert contract is not None
        present = {axis for atoms in kind.axes for axis, _ in atoms}
        stack = next((i for i, n in enumerate(shape) if i in present or n == 1), len(shape))
        if not contract and contraction(eqn, index):  # a contraction of length 1: any leaf axis of length 1 is it
            contract = tuple(i for i, n in enumerate(shape) if i >= stack and n == 1)[:1]
        path = inventory.leaves[kind.leaf]
        operand = Operand(shape, dtype, contract, stack, is_weight=True)
        return _with(Site("weight", "leaf", path, (path,), operand), quantizers.weight)
    if op.is_lookup and index == 1:  # one index or many: the plan is the same
        return Site("input", "input", op.path, (), Operand(op.stack, str(aval.dtype), (), depth, is_weight=False))
    contract = tuple(i + depth for i in contraction(eqn, index, op.picked))
    if isinstance(kind, Data):
        role = (
            "input"
            if any(not isinstance(k, Data) or isinstance(k, Picked) for k in op.kinds)
            else ("lhs", "rhs")[index]
        )
        operand = Operand((*op.stack, *[0] * len(aval.shape)), str(aval.dtype), contract, depth, is_weight=False)
        return _with(Site(role, "mixed" if kind.is_mixed else "input", op.path, (), operand), quantizers.input)
    if kind.varies and quantizers.weight is not None:
        raise ValueError(
            f"{op.path} ({op.source}): its weight is computed anew in every turn of a loop, or on every device, "
            f"so that it cannot be quantized once: scan over stacked parameters, move the arithmetic out of the loop, or "
            f"{op.path!r}: 'keep'"
        )
    operand = Operand((*op.stack, *aval.shape), str(aval.dtype), contract, depth, is_weight=True)
    leaves = tuple(sorted(inventory.leaves[i] for i in kind.leaves))
    return _with(Site("weight", "derived" if leaves else "constant", op.path, leaves, operand), quantizers.weight)


def _with(site: Site, quantizer: Any) -> Site:
    if quantizer is None:
        return site
    spec = quantizer.spec
    if not site.is_weight and not spec.dynamic and not spec.granularity.is_one_per_array:
        raise ValueError(
            f"{site.key}: a stored input scale is per tensor, got /{spec.granularity.text}; use /tensor, or /dynamic for "
            f"one scale per row"
        )
    if not _is_float(jnp.dtype(site.operand.dtype)):
        raise ValueError(f"{site.key}: only float operands can be quantized, its {site.role} is {site.operand.dtype}")
    spec.granularity.blocks(site.operand)
    return dataclasses.replace(site, spec=spec, quantizer=quantizer)


def _macs(op: Operation) -> int:
    if op.is_lookup:
        return 0
    eqn = op.eqn
    left, right = (v.aval for v in eqn.invars)
    return math.prod(eqn.outvars[0].aval.shape) * contracted_size(Matmul.of(eqn), left, right)


def _check_overflow(op: Operation, sites: tuple[Site, ...], *, integer: bool) -> None:
    specs = [site.spec for site in sites]
    if op.is_lookup or not all(s is not None and s.format.is_integer for s in specs):
        return
    left, right = weight_right(op.eqn, op.weight).operands(*specs)
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
        raise ValueError(
            f"{op.path}: 16 bits are for inputs, and of two inputs for the left one; quantize the other to 8 bits or less"
        )
    reach = (256.0 if left.format.bits > 8 else reach_of_spec(left)) * reach_of_spec(right)
    count = count if integer else min([count, *(_block_size(site) for site in sites)])
    if reach * count >= 2.0**31:
        raise ValueError(
            f"{op.path} ({op.source}): {count} products of up to {reach:.0f} may pass int32, which holds "
            f"{int((2.0**31 - 1) // reach)} of them; use fewer bits on either side, or groups of weights (w<bits>/g<size>), "
            f"each of which is summed alone"
        )


def _block_size(site: Site) -> float:
    """How many products meet before a weight's scale: all of them, or those of a group."""
    if site.spec is None or not site.is_weight:
        return math.inf
    blocks = site.spec.merged.granularity.blocks(site.operand)
    return math.prod(blocks[axis] for axis in site.operand.contract)


def _warn_constants(rows: tuple[Row, ...]) -> None:
    """Warns of products with arrays that the function closed over, where only a rule of wildcards is about them."""
    constants = [
        row.path
        for row in rows
        if row.weight is not None and row.weight.kind == "constant" and row.weight.operand.contract
    ]
    left_out = [path for path in constants if _LEFT_OUT in next(row.rule for row in rows if row.path == path)]
    if left_out:
        warnings.warn(
            f"{', '.join(left_out)}: the weight is an array the function closed over, not a parameter, and left in float. "
            f"Pass it in params, or name it in a rule of its own, such as {{{left_out[0]!r}: 'keep'}}",
            stacklevel=4,
        )
