"""Which operations of a full-integer plan run on the native kernels of a CPU, and their weights there."""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lowbit.core.checks import is_traced
from lowbit.interpret.prepared import apart
from lowbit.interpret.trace import Model, Trace, trace
from lowbit.packed import fixed_calls
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan
from lowbit.program.read import Value

from .compute import code_dtype
from .flat import Constants
from .nodes import Node
from .plans import program_for
from .weights import weight_places

Orders = Mapping[str, fixed_calls.Order]
"""By operation."""

Native = Callable[[Array], Array]
"""From the codes of an input to those of the result."""


def native(node: Node, order: fixed_calls.Order, zero: Callable[[Value], Array]) -> Native:
    """Returns an operation on the native kernels.

    Args:
        node: it.
        order: of its weight.
        zero: the zero points of values.
    """
    return lambda codes: fixed_calls.result(node.equations[0], codes, zero(node.ins[0]), order)


UNPREPARED = "the weight is not in the kernels' order: let the jitted function close over qparams"


def orders_of(plan: Plan, traced: Trace, qparams: QParams) -> dict[str, fixed_calls.Order]:
    """Returns the weights in the kernels' order, by operation, of those that the kernels can run.

    Args:
        plan: full-integer.
        traced: a call on the packed parameters.
        qparams: packed, concrete.
    """
    program, found, orders = program_for(plan, traced), qparams.sites, dict[str, fixed_calls.Order]()
    for node, q, reason in _weights(plan, traced, qparams):
        if reason is None:
            zero = found[program.grids[node.ins[0]]]["zero"]
            orders[node.path] = fixed_calls.order_of(node.equations[0], q, found[node.path], zero, plan.rounding)
    return orders


def reasons_of(plan: Plan, traced: Trace, qparams: QParams) -> dict[str, str]:
    """Returns why operations cannot run on the kernels, by path: arguments as `orders_of`, parameters traced or not."""
    if (reason := fixed_calls.status()) is not None:
        return {row.path: reason for row in plan.rows}
    weights = {node.path: reason for node, _, reason in _weights(plan, traced, qparams)}
    found = {row.path: weights.get(row.path, "both operands are computed") for row in plan.rows}
    return {path: reason for path, reason in found.items() if reason is not None}


def kernel_lines(
    plan: Plan, traced: Trace, qparams: QParams, orders: Orders, how: str, why: str
) -> list[tuple[str, str, str]]:
    """Returns of every row its path, what runs it, and why no faster one.

    Args:
        plan: full-integer.
        traced: a call on the packed parameters.
        qparams: packed.
        orders: of the operations on the kernels.
        how: what runs the others.
        why: what to say of those.
    """
    reasons = reasons_of(plan, traced, qparams)
    return [
        (row.path, "cpu", "") if row.path in orders else (row.path, how, f"{reasons.get(row.path, UNPREPARED)}; {why}")
        for row in plan.rows
    ]


def _weights(plan: Plan, traced: Trace, qparams: QParams) -> Iterator[tuple[Node, Any, str | None]]:
    """The operations that have a weight, the weight, and why the kernels cannot run them."""
    program, found = program_for(plan, traced), qparams.sites
    specs = {path: site.spec for path, site in plan.grids().items()}
    known = Constants(dict(zip(program.flat.inputs[: traced.count], traced.leaves, strict=False)))
    for node, site, var in weight_places(plan, program):
        if node.kind not in ("dot", "conv"):
            yield node, None, "a look-up of codes"
            continue
        grids = [specs[program.grids[v]] for v in (node.ins[0], node.out)]
        q = (known.raw(var) if site.kind == "leaf" else qparams.sites[node.path]["weight"]).merged()
        if any(spec is None or code_dtype(spec) != jnp.int8 for spec in grids):
            yield node, q, "the kernels take and return codes of 8 bits or less"
        else:
            yield node, q, fixed_calls.why_not(node.equations[0], q, found[node.path])


class FixedOrders:
    """The weights of the last packed parameters in the kernels' order, as long as their arrays live."""

    def __init__(self, fn: Model, plan: Plan):
        self.fn, self.plan = fn, plan
        self.sources: tuple[weakref.ref[Any], ...] = ()
        self.made: dict[str, fixed_calls.Order] = {}

    def __call__(
        self, qparams: QParams, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[str, fixed_calls.Order]:
        """Returns the orders; none where parameters are traced."""
        arrays = jax.tree.leaves(qparams)
        if any(is_traced(x) for x in arrays):
            return {}
        is_known = 0 < len(self.sources) == len(arrays)
        if is_known and all(ref() is x for ref, x in zip(self.sources, arrays, strict=True)):
            return self.made
        traced = trace(self.fn, qparams.params, args, dict(kwargs), has_picks=False)
        with jax.ensure_compile_time_eval():  # at once, also while another function is traced
            made = apart(orders_of(self.plan, traced, qparams), arrays)
        self.sources, self.made = (), {}
        if all(isinstance(x, jax.Array) for x in arrays):
            me = weakref.ref(self)

            def forget(dead: Any) -> None:
                if (memo := me()) is not None and any(ref is dead for ref in memo.sources):
                    memo.sources, memo.made = (), {}

            self.sources, self.made = tuple(weakref.ref(x, forget) for x in arrays), made
        return made
