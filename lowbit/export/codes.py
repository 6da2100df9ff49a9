"""A form's program, traced with integers as operands and scales as values."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core import blocks as block_ops
from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Spec
from lowbit.export import lowering
from lowbit.export.fold import fold
from lowbit.export.forms import Lowered
from lowbit.formats.lookup import format_named
from lowbit.interpret.integer.contraction import result_scale
from lowbit.interpret.integer.flat import Constants
from lowbit.interpret.integer.ops import kind_named
from lowbit.interpret.integer.plans import program_for
from lowbit.interpret.integer.weights import weight_places
from lowbit.interpret.operations import Operation
from lowbit.interpret.trace import Trace, trace_planned
from lowbit.interpret.walk import Walk
from lowbit.packed.bits import unpack
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan

Results = Callable[..., list[Any]]
"""``(plan, trace of a call, unpacked parameters) -> flat results``; codes are traced, what depends on scales alone is a value.
Of a full-integer plan also ``has_integer_io=``."""


def shapes(lowered: Lowered) -> list[jax.ShapeDtypeStruct]:
    """Returns the module's inputs."""
    return [jax.ShapeDtypeStruct(tuple(x["shape"]), jnp.dtype(x["dtype"])) for x in lowered.inputs]


def program(
    lowered: Lowered,
    full_integer: Results,
    ordinary: Results,
    *,
    kept: Collection[str],
    rewritten: Collection[str] = lowering.REWRITTEN,
) -> Callable[..., list[Any]]:
    """Returns the function of the flat inputs, its constants folded.

    Args:
        lowered: what is exported.
        full_integer: the form's interpretation of full-integer plans.
        ordinary: of others.
        kept: primitives of the form, which stay in the program.
        rewritten: primitives that are written as `lowbit.export.lowering` has them.
    """
    leaves, tree = jax.tree.flatten(lowered.qparams, is_leaf=lambda x: isinstance(x, QTensor))
    before = [unpack(leaf).merged() if isinstance(leaf, QTensor) else leaf for leaf in leaves]
    leaves = [positive(leaf) if isinstance(leaf, QTensor) else leaf for leaf in before]
    is_turned = any(a is not b for a, b in zip(before, leaves, strict=True))
    codes = [leaf.codes for leaf in leaves if isinstance(leaf, QTensor)]
    levels = {path: state["codes"] for path, state in lowered.qparams.sites.items() if "codes" in state}

    def function(codes: Sequence[Any], levels: dict[str, Any], *inputs: Any) -> list[Any]:
        # Integers are traced and stay in the program; what depends on scales alone is a value, as types need it.
        with jax.ensure_compile_time_eval():
            rest = iter(codes)
            filled = [dataclasses.replace(x, codes=next(rest)) if isinstance(x, QTensor) else x for x in leaves]
            qparams = jax.tree.unflatten(tree, filled)
            sites = {path: {**s, "codes": levels[path]} if path in levels else s for path, s in qparams.sites.items()}
            qparams = dataclasses.replace(qparams, sites=sites)
            call = lowered.call
            arguments, has_codes = call.arguments(inputs), lowered.has_integer_io
            traced = trace_planned(
                lowered.fn, lowered.plan, qparams.params, arguments, dict(call.kwargs), has_codes=has_codes
            )
            if lowered.plan.is_full_integer:
                if is_turned:
                    sites = turned(lowered.plan, traced, qparams, jax.tree.unflatten(tree, before))
                    qparams = dataclasses.replace(qparams, sites=sites)
                return full_integer(lowered.plan, traced, qparams, has_integer_io=lowered.has_integer_io)
            return ordinary(lowered.plan, traced, qparams)

    closed = jax.make_jaxpr(function)(codes, levels, *shapes(lowered))
    return fold(closed, jax.tree.leaves((codes, levels)), kept=kept, rewritten=rewritten)


def positive(q: QTensor) -> QTensor:
    """Returns the same values with positive scales: where one is negative, its codes are negated, in int8.

    The types of these forms have positive scales only. Tensors that have no negative scale, or levels that are no integers,
    are returned as they are.

    Raises:
        ValueError: where a code of -128 would be negated.
    """
    if not q.spec.has_signed_scales or not q.spec.format.is_integer or isinstance(q.scale, QTensor):
        return q
    sign = jnp.where(q.scale < 0, -1, 1).astype(jnp.int8)
    sign = block_ops.spread(sign, q.shape, q.blocks)
    codes = block_ops.split(q.codes.astype(jnp.int8), q.blocks)
    if q.spec.format.bits == 8 and bool(jnp.any((codes == -128) & (sign < 0))):
        raise ValueError(
            f"a form whose scales are positive cannot hold {q.spec.text}: 128, the negative of a code, is none of int8; use "
            f"fewer bits, or leave out /signed"
        )
    codes = block_ops.join(codes * sign, q.shape, q.blocks)
    spec = Spec(format_named("int8"), q.spec.granularity, scale=q.spec.scale)
    return dataclasses.replace(q, codes=codes, scale=jnp.abs(q.scale), spec=spec)


def turned(plan: Plan, traced: Trace, qparams: QParams, before: QParams) -> dict[str, Any]:
    """Returns the integer constants of a full-integer plan for weights that `positive` has turned.

    A multiplier has the sign of the weight's scale, and a bias is in steps of it: both change it with the codes.

    Args:
        plan: the plan.
        traced: of a call on ``qparams``.
        qparams: unpacked, scales positive.
        before: the same with the scales that the constants are of.
    """
    program = program_for(plan, traced)
    packed = jax.tree.leaves(before.params, is_leaf=lambda x: isinstance(x, QTensor))
    signed = iter(x for x in packed if isinstance(x, QTensor))
    leaves = [next(signed) if isinstance(x, QTensor) else x for x in traced.leaves[: traced.count]]
    known = Constants.of(program.flat, leaves)
    sites = dict(qparams.sites)
    for node, site, var in weight_places(plan, program):
        weight = known.raw(var) if site.kind == "leaf" else before.sites[node.path]["weight"]
        constants = sites.get(node.path, {})
        if not weight.spec.has_signed_scales or not kind_named(node.kind).reads_grids or "groups" in constants:
            continue  # of groups, the sign is in their integers; a look-up has no multiplier
        sign = jnp.where(result_scale(node.equations[0], weight) < 0, -1, 1)
        changed = {
            name: constants[name] * sign.astype(constants[name].dtype)
            for name in ("multiplier", "bias", "bias_high")
            if name in constants
        }
        sites[node.path] = {**constants, **changed}
    return sites


def walked(plan: Plan, traced: Trace, qparams: QParams, result: Callable[..., Any]) -> list[Any]:
    """Returns the flat results of an ordinary plan, whose quantized operations ``result`` computes.

    Args:
        plan: the plan.
        traced: of the call on ``qparams``.
        qparams: unpacked.
        result: ``(operation, row, operands, states of its sites) -> result``.
    """
    rows = {row.path: row for row in plan.rows}

    def at(op: Operation, values: list[Any], states: Any) -> tuple[Any, Any]:
        row = rows[op.path]
        # Outside scans over layers the states are values, even in a branch or a remat, where the walk has them traced.
        states_of = (states or {}) if row.stack else qparams.sites.get(op.path, {})
        return result(op, row, values, states_of), states

    walk = Walk(traced.inventory, at, frozenset(row.path for row in plan.quantized), is_guarded=True)
    return walk.run(traced.leaves, qparams.sites)[0]
