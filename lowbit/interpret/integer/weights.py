"""The weights of the operations of a full-integer plan: quantized, moved to where they are taken, and checked."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.core.quantizer import Quantizer
from lowbit.core.spec import Operand
from lowbit.interpret.refusals import Refusals
from lowbit.interpret.state import QState, after_batch, get, layer_operand, quantizer_of
from lowbit.interpret.trace import Trace
from lowbit.plan.rows import Plan, Row, Site
from lowbit.program.read import Value

from .flat import Constants
from .nodes import Node, Placement
from .ops import kind_named
from .plans import program_for


def weights_of(
    plan: Plan, program: Placement, traced: Trace, qstate: QState | None, forward: Callable[..., QTensor], *,
    is_trained: bool = False,
) -> tuple[Constants, dict[str, QTensor], dict[str, Any]]:  # fmt: skip
    """The constants with quantized leaves, the weight of every operation, and the weights' new states."""
    leaves, changed = list(traced.leaves[: traced.count]), {}
    for path, site in plan.leaf_sites().items():
        i = traced.paths.index(path)
        state = None if qstate is None else get(qstate, site.key, site.role)
        if is_trained:
            changed[path] = after_batch(site, state, {"values": leaves[i]}, None)
        leaves[i] = forward(site, state, leaves[i], site.operand)
    known = Constants.of(program.flat, leaves)
    weights = {}
    for node, site, var in weight_places(plan, program):
        if site.kind == "leaf":
            weights[node.path] = known.raw(var).merged()
            continue
        x, state = known.value(var), None if qstate is None else get(qstate, site.key, site.role)
        if is_trained:
            changed[node.path] = after_batch(site, state, None, x)
        weights[node.path] = forward(site, state, x, layer_operand(site)).merged()
    return known, weights, changed


def weight_places(plan: Plan, program: Placement) -> list[tuple[Node, Site, Value]]:
    """Returns the operations that have a weight, each with its site and the value that it is."""
    rows: dict[str, Row] = {row.path: row for row in plan.rows}
    places = []
    for node, _ in program.everywhere():
        if node.op is not None and (site := rows[node.path].weight) is not None:
            places.append((node, site, weight_of(node)))
    return places


def weight_of(node: Node) -> Value:
    """The weight of an operation; written indices of a look-up come after it."""
    return next(v for v in node.equations[0].ins if not v.is_data)


def check_weights(plan: Plan, traced: Trace) -> None:
    """Moves every quantized weight to its operation, abstractly, as `simulation` does.

    Raises:
        ValueError: where a weight's scale cannot follow it, or varies along what its operation sums over.
    """
    program = program_for(plan, traced)
    refused = Refusals()

    def check(node: Node, weight: Callable[[], QTensor]) -> None:
        q, kind = weight(), kind_named(node.kind)
        spec = plan.grids()[program.grids[node.ins[0]]].spec if kind.reads_grids else None
        if spec is not None:
            kind.check_weight(node, q, spec)

    def run(leaves: list[Any]) -> None:
        now = dataclasses.replace(traced, leaves=leaves)

        def forward(site: Site, state: Any, x: Any, operand: Operand) -> QTensor:
            del state
            return _started(quantizer_of(site), operand, x)

        for node, weight in _weights(plan, program, now, forward):
            refused.attempt(node.path, lambda node=node, weight=weight: check(node, weight), source=node.source)

    jax.eval_shape(run, traced.avals)
    refused.check()


def _weights(
    plan: Plan, program: Placement, traced: Trace, forward: Callable[..., QTensor]
) -> Iterator[tuple[Node, Callable[[], QTensor]]]:
    """Yields the operations that have a weight, and what moves it there."""
    leaves = list(traced.leaves[: traced.count])
    for path, site in plan.leaf_sites().items():
        i = traced.paths.index(path)
        leaves[i] = forward(site, None, leaves[i], site.operand)
    known = Constants.of(program.flat, leaves)
    for node, site, var in weight_places(plan, program):
        if site.kind == "leaf":
            yield node, lambda var=var: known.raw(var)
        else:
            yield node, lambda var=var, site=site: forward(site, None, known.value(var), layer_operand(site))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _started(quantizer: Quantizer, operand: Operand, x: Array) -> QTensor:
    """A weight quantized from its first state: layers alike are traced once."""
    return quantizer.quantize(quantizer.init(operand, {"values": x}, jax.random.key(0)), x, operand)
