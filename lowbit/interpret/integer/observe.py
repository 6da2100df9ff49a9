"""`observation`: what the operations of a full-integer plan are given and what they leave, beside the float model.

The integer program and the float one are computed side by side, node by node, so that everything, in loops too, has its
pair. Operands and results are those of the integers, dequantized by their grids.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jax.typing import DTypeLike
from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Operand
from lowbit.core.statistics import NotFinite, Statistic
from lowbit.interpret.codes import with_codes
from lowbit.interpret.observe import OUTPUT, States, Watch, is_leaf, of_leaf, updated
from lowbit.interpret.state import QState, get, quantizer_of
from lowbit.interpret.trace import Trace
from lowbit.interpret.walk import plain
from lowbit.plan.rows import Plan, Row, Site

from .ends import dequantized, quantized
from .flat import Constants
from .interpretations import exact_arithmetic, grid_of, specs_of, warm
from .nodes import Node
from .ops import kind_named
from .ops.lookup import picking
from .plans import program_for
from .run import data_of, defined, evaluate
from .weights import weight_places, weights_of


class Pair(NamedTuple):
    """A value of both programs.

    Attributes:
        codes: on its grid, of the integer one.
        value: of the float one.
    """

    codes: Array
    value: Array


def observation(
    plan: Plan,
    traced: Trace,
    watch: Watch,
    states: States,
    *,
    qstate: QState,
    codes: Mapping[str, Any],
    floats: Trace | None = None,
    beside: Mapping[str, Any] | None = None,
    is_alone: bool = False,
) -> States:
    """Returns the states after one batch.

    An input is on its grid before the operation reads it: statistics of the product and others see the same. A result is
    what the operation leaves on its grid, after the bias, factors, relu and clips that it absorbs; so is the float value
    beside it. Whether values are finite is asked of the float program: codes always are.

    Args:
        plan: full-integer.
        traced: the call.
        watch: what is looked at.
        states: before the batch.
        qstate: the states of weights and grids.
        codes: chosen for weights, by key.
        floats: the call with the parameters of the float model; ``traced`` by default.
        beside: ``{path: {role: {"gradient" or "ends": array}}}``, of this batch.
        is_alone: every operation is given what the float program has, put on its grids; statistics that are not of the
            product see an input before that.
    """
    program, rows, wanted = program_for(plan, traced), {row.path: row for row in plan.rows}, watch.by_path()

    def forward(site: Site, state: Any, x: Any, operand: Operand) -> QTensor:
        return with_codes(quantizer_of(site).quantize(state, x, operand), codes.get(site.key))

    known, weights, _ = weights_of(plan, program, traced, qstate, forward)
    grids = {path: grid_of(site, get(qstate, path, OUTPUT)) for path, site in plan.grids().items()}
    arithmetic, specs = exact_arithmetic(plan, program, traced, weights, grids), specs_of(plan)
    inputs, env = program.flat.inputs[: traced.count], data_of(program, traced)
    exact = Constants.of(program.flat, (floats or traced).leaves)
    warm(program, exact)
    derived = {
        node.path: (known.value(var), plain(weights[node.path]), exact.value(var))
        for node, site, var in weight_places(plan, program)
        if site.kind != "leaf" and site.role in wanted.get(node.path, {})
    }

    def on_grid(x: Array, grid: str) -> Array:
        return quantized(x, arithmetic.numbers[grid], specs[grid])

    def off_grid(x: Array, grid: str, dtype: DTypeLike) -> Array:
        return dequantized(x, arithmetic.numbers[grid], dtype)

    def at(node: Node, values: list[Any], seen: Any) -> tuple[list[Any], Any]:
        if node.kind == "input":
            x = env[node.out]
            return [Pair(on_grid(x, program.grids[node.out]), x)], seen
        given, right = ([x[i] if isinstance(x, Pair) else x for x in values] for i in range(2))
        paired = [Pair(*both) for both in zip(arithmetic(node, given), defined(node, right, exact.value), strict=True)]
        if node.op is not None and node.path in wanted:
            seen = {**seen, node.path: look(node, given, right, paired[0], seen[node.path])}
        return paired, seen

    def look(node: Node, given: list[Any], right: list[Any], pair: Pair, seen: Mapping[str, Any]) -> dict[str, Any]:
        row, roles, after = rows[node.path], wanted[node.path], dict(seen)
        others = (beside or {}).get(node.path, {})

        def add(role: str, before: Any, used: Any, float_value: Any) -> None:
            if role in roles:
                also = {**others.get(role, {}), "float": float_value}
                after[role] = _updated(node, row, role, roles[role], after[role], (before, used, float_value), also)

        if node.path in derived:
            add("weight", *derived[node.path])
        if not kind_named(node.kind).reads_grids:
            picks = tuple(picking(node, given, exact.value))
            add("input", picks, picks, picks)
        else:
            places = [program.grids[v] for v in node.ins]
            if is_alone:
                given = [on_grid(x, grid) for x, grid in zip(right, places, strict=True)]
                pair = pair._replace(codes=arithmetic(node, given)[0])
            data = [site for site in row.sites if not site.is_weight]
            for site, grid, c, x in zip(data, places, given, right, strict=True):
                used = off_grid(c, grid, x.dtype)
                add(site.role, x if is_alone else used, used, x)
        left = off_grid(pair.codes, program.grids[node.out], pair.value.dtype)
        add(OUTPUT, left, left, pair.value)
        return after

    after = {path: dict(roles) for path, roles in states.items()}
    start = {path: {} for path in after}
    for path, roles in after.items():
        for role, before in roles.items():
            if not is_leaf(rows[path], role):
                start[path][role] = before
                continue
            site = next(site for site in rows[path].sites if site.role == role)
            i = traced.paths.index(site.key)
            used = plain(known.raw(inputs[i]))
            after[path][role] = of_leaf(site, wanted[path][role], before, traced.leaves[i], used)
    walked = evaluate(program.nodes, env, at, start, exact.value)
    return {path: {**roles, **walked[path]} for path, roles in after.items()}


def _updated(
    node: Node,
    row: Row,
    role: str,
    statistics: tuple[Statistic, ...],
    states: Mapping[str, Any],
    values: tuple[Any, Any, Any],
    beside: Mapping[str, Any],
) -> dict[str, Any]:
    """The states after a value: as it arrives, as it is multiplied, and, of `NotFinite`, as the float program has it."""
    before, used, float_value = values
    finite = [s for s in statistics if isinstance(s, NotFinite)]
    rest = [s for s in statistics if not isinstance(s, NotFinite)]
    assert node.op is not None
    after = updated(node.op, row, role, finite, states, float_value, {}, is_product=False)
    for is_product, x in ((False, before), (True, used)):
        after = updated(node.op, row, role, rest, after, x, beside, is_product=is_product)
    return after
