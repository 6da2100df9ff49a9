"""`observation`: the operands and results of operations, watched; in float, or as a quantized model computes them.

One walk serves them all: `lowbit.observe` watches what the user asks for, `lowbit.calibrate` what quantizers read.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.core.meshes import automatic
from lowbit.core.qtensor import QTensor
from lowbit.core.rows import Observed
from lowbit.core.spec import Operand
from lowbit.core.statistics import NotFinite, Statistic
from lowbit.plan.rows import Plan, Row, Site
from lowbit.plan.views import result_view, row_view

from .codes import with_codes
from .operate import compute
from .operations import Operation
from .state import CODES, QState, get, has_no_values, layer_operand, quantizer_of
from .trace import Trace
from .walk import Walk, plain

OUTPUT = "output"
"""The role of an operation's result."""

States = dict[str, dict[str, dict[str, Any]]]
"""``{path: {role: {name: state}}}``"""


@dataclasses.dataclass(frozen=True)
class Watch:
    """What is looked at, hashable.

    Attributes:
        places: ``(path, role, statistics)``, in program order; `NotFinite` is among those of every float operand.
    """

    places: tuple[tuple[str, str, tuple[Statistic, ...]], ...]

    @classmethod
    def of(cls, wanted: Mapping[str, Mapping[str, Sequence[Statistic]]]) -> "Watch":
        """Returns what is wanted, by path and role."""
        return cls(tuple((path, role, tuple(each)) for path, roles in wanted.items() for role, each in roles.items()))

    def by_path(self) -> dict[str, dict[str, tuple[Statistic, ...]]]:
        """Returns the statistics by path and role."""
        statistics_of: dict[str, dict[str, tuple[Statistic, ...]]] = {}
        for path, role, statistics in self.places:
            statistics_of.setdefault(path, {})[role] = statistics
        return statistics_of


@dataclasses.dataclass(frozen=True)
class Grids:
    """How a quantized model computes: what puts operands on their grids.

    Attributes:
        leaf: ``(site, values) -> QTensor`` of a parameter.
        operand: ``(site, values, state of the walk, statistics so far) -> QTensor`` of another operand.
        arriving: ``(site, values, state of the walk) -> values``: what an operand that is data arrives as; as it is by default.
    """

    leaf: Callable[[Site, Any], QTensor]
    operand: Callable[[Site, Any, Any, Any], QTensor]
    arriving: Callable[[Site, Any, Any], Any] | None = None

    @classmethod
    def of(cls, qstate: QState, codes: Mapping[str, Any] | None = None) -> "Grids":
        """Returns the grids of a state: parameters by it, other operands by what the walk carries of it, by role.

        Args:
            qstate: the state.
            codes: chosen for weights, checked; those of derived ones are read from what the walk carries
                (`lowbit.interpret.state.carried_states`).
        """
        chosen = codes or {}

        def leaf(site: Site, x: Any) -> QTensor:
            def quantized(state: QState, x: Any, codes: Any) -> QTensor:
                return with_codes(quantizer_of(site).quantize(state, x, site.operand), codes)

            return automatic(quantized, get(qstate, site.key, site.role), x, chosen.get(site.key), like=x)

        def operand(site: Site, x: Any, state: Any, _: Any) -> QTensor:
            q = quantizer_of(site).quantize(state[site.role], x, layer_operand(site))
            return with_codes(q, state.get(CODES)) if site.is_weight else q

        return cls(leaf, operand)

    def forced(self) -> "Grids":
        """Returns the same where operands that are data arrive as the float model has them: what the walk carries as ``float``."""
        return dataclasses.replace(
            self, arriving=lambda site, value, state: state.get("float", {}).get(site.role, value)
        )


def observed(op: Operation, row: Row, role: str, value: Any = None) -> Observed:
    """Returns an operand or result of an operation as a statistic gets it: of one layer, with real shapes.

    Args:
        op: the operation.
        row: its row.
        role: of the operand, or `OUTPUT`.
        value: whose shape it has; that of the trace by default.
    """
    if role == OUTPUT:
        shaped = op.eqn.outvars[0].aval if value is None else value
        return Observed(tuple(shaped.shape), str(shaped.dtype), (), 0, is_weight=False)
    index = next(i for i, site in enumerate(row.sites) if site.role == role)
    site = row.sites[index]
    if site.kind == "leaf":
        layer = leaf_operand(site)
        return Observed(layer.shape, layer.dtype, layer.contract, 0, is_weight=True)
    shaped = op.eqn.invars[index].aval if value is None else value
    contract = layer_operand(site).contract
    rows, results = row_view(row, index), result_view(row, index)
    return Observed(tuple(shaped.shape), str(shaped.dtype), contract, 0, site.is_weight, rows, results)


def leaf_operand(site: Site) -> Operand:
    """Returns the operand of one layer of a parameter."""
    return layer_operand(site)


def depth_of(row: Row, role: str) -> tuple[int, ...]:
    """Returns the lengths of the axes that are layers in the state of a role: those of the leaf, for a parameter."""
    site = next((site for site in row.sites if site.role == role), None)
    if site is not None and site.kind == "leaf":
        return tuple(site.operand.shape[: site.operand.stack])
    return row.stack


def empty(watch: Watch, plan: Plan, traced: Trace) -> States:
    """Returns the states before the first batch, a leading axis for every scan over layers."""
    rows, operations = {row.path: row for row in plan.rows}, {op.path: op for op in traced.inventory.operations}
    by_path: States = {}
    for path, role, statistics in watch.places:
        operand = observed(operations[path], rows[path], role)
        states: Any = {s.name: s.init(operand) for s in statistics}
        for n in reversed(depth_of(rows[path], role)):
            states = jax.tree.map(lambda x, n=n: jnp.broadcast_to(x, (n, *x.shape)), states)
        states = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), states)  # not weakly typed: that would compile twice
        by_path.setdefault(path, {})[role] = states
    return by_path


def finished(watch: Watch, plan: Plan, states: States) -> States:
    """Returns the finished values, a leading axis for every scan over layers; `NotFinite` is left out."""
    rows = {row.path: row for row in plan.rows}
    by_path: States = {}
    for path, role, statistics in watch.places:
        roles = by_path.setdefault(path, {}).setdefault(role, {})
        for s in statistics:
            if isinstance(s, NotFinite):
                continue
            finish: Any = s.finish
            for _ in depth_of(rows[path], role):
                finish = jax.vmap(finish)
            roles[s.name] = finish(states[path][role][s.name])
    return by_path


def observation(
    plan: Plan,
    traced: Trace,
    watch: Watch,
    states: States,
    *,
    grids: Grids | None = None,
    carried: Mapping[str, Any] | None = None,
    beside: Mapping[str, Any] | None = None,
) -> States:
    """Returns the states after one batch.

    Args:
        plan: whose rows name the operations; not full-integer if ``grids`` are given.
        traced: the call.
        watch: what is looked at.
        states: before the batch.
        grids: how operands are quantized; None: the model in float.
        carried: states of the walk by path, which ``grids.operand`` reads: per layer inside scans.
        beside: ``{path: {role: {"float" or "gradient": array}}}``, of this batch: per layer inside scans.
    """
    rows, wanted = {row.path: row for row in plan.rows}, watch.by_path()
    leaves, after = list(traced.leaves), {path: dict(roles) for path, roles in states.items()}
    values = dict(zip(traced.paths, leaves, strict=False))
    on_grid: dict[str, QTensor] = {}
    if grids is not None:
        for path, site in plan.leaf_sites().items():
            i = traced.paths.index(path)
            on_grid[path] = leaves[i] = grids.leaf(site, leaves[i])
    for path, roles in wanted.items():
        for site in rows[path].sites:
            if site.kind == "leaf" and site.role in roles:
                given, used = values[site.key], plain(on_grid.get(site.key, values[site.key]))
                update = functools.partial(of_leaf, site, roles[site.role])
                after[path][site.role] = automatic(update, after[path][site.role], given, used)

    def at(op: Operation, given: list[Any], state: Any) -> tuple[Any, Any]:
        row, roles = rows[op.path], wanted.get(op.path, {})
        seen, others = dict(state["seen"]), state["beside"]

        def look(role: str, x: Any, *, is_product: bool) -> None:
            seen[role] = updated(op, row, role, roles[role], seen[role], x, others.get(role, {}), is_product=is_product)

        operands = []
        for site, value in zip(row.sites, given, strict=True):
            if grids is not None and grids.arriving is not None and not site.is_weight:
                value = grids.arriving(site, value, state["grid"])
            x = value if op.is_lookup else plain(value)
            is_quantized = grids is not None and site.spec is not None
            if site.role in roles and site.kind != "leaf":
                look(site.role, x, is_product=False)
            if not is_quantized:
                used = value if op.is_lookup and isinstance(value, QTensor) else x
            elif site.kind == "leaf":
                used = value
            else:
                assert grids is not None
                used = grids.operand(site, plain(value), state["grid"], seen.get(site.role))
            if site.role in roles and site.kind != "leaf":
                look(site.role, plain(used) if is_quantized else x, is_product=True)
            operands.append(used)
        out = compute(op, *operands)
        if OUTPUT in roles:
            for is_product in (False, True):
                look(OUTPUT, out, is_product=is_product)
        return out, {**state, "seen": seen}

    def reduce(sites: Any, axis_names: tuple[str, ...]) -> Any:
        return {
            path: {
                **state,
                "seen": {
                    role: {s.name: s.across(each[s.name], axis_names) for s in wanted[path][role]}
                    if role in wanted.get(path, {})
                    else each
                    for role, each in state["seen"].items()
                },
            }
            for path, state in sites.items()
        }

    paths = frozenset(wanted) | (frozenset() if grids is None else frozenset(row.path for row in plan.quantized))
    start = {
        path: {"seen": {}, "grid": (carried or {}).get(path, {}), "beside": (beside or {}).get(path, {})}
        for path in paths
    }
    for path, roles in after.items():
        start[path]["seen"] = {role: each for role, each in roles.items() if not is_leaf(rows[path], role)}
    walk = Walk(traced.inventory, at, paths, writes=True, reduce=reduce, is_guarded=grids is not None)
    _, walked = walk.run(leaves, start)
    return {path: {**roles, **walked[path]["seen"]} for path, roles in after.items()}


def is_leaf(row: Row, role: str) -> bool:
    """Returns whether a role is that of a parameter, which is looked at in its own coordinates."""
    return any(site.role == role and site.kind == "leaf" for site in row.sites)


def updated(
    op: Operation,
    row: Row,
    role: str,
    statistics: Sequence[Statistic],
    states: Mapping[str, Any],
    x: Any,
    beside: Mapping[str, Any],
    *,
    is_product: bool,
) -> dict[str, Any]:
    """Returns the states of those statistics that are of the product, or of those that are not; what is empty says nothing."""
    after = dict(states)
    if isinstance(x, tuple):  # of a look-up: all its indices
        x = x[0] if len(x) == 1 else jnp.stack(jnp.broadcast_arrays(*x), axis=-1)
    if isinstance(x, QTensor):
        x = plain(x)
    if has_no_values(x):
        return after
    operand = observed(op, row, role, x)
    for s in statistics:
        if s.is_of_product == is_product:
            other = {"beside": beside[s.beside]} if s.beside else {}
            after[s.name] = s.update(after[s.name], x, operand, **other)
    return after


def of_leaf(
    site: Site, statistics: Sequence[Statistic], states: Mapping[str, Any], given: Any, used: Any
) -> dict[str, Any]:
    """Returns the states of a parameter's statistics, in leaf coordinates, layer by layer."""
    after = dict(states)
    layer = leaf_operand(site)
    operand = Observed(layer.shape, layer.dtype, layer.contract, 0, is_weight=True)
    for s in statistics:

        def update(state: Any, x: Any, s: Statistic = s) -> Any:
            return s.update(state, x, operand)

        for _ in range(site.operand.stack):
            update = jax.vmap(update)
        after[s.name] = update(after[s.name], used if s.is_of_product else given)
    return after


def names(states: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yields path, role and the states of every place."""
    return ((path, role, each) for path, roles in states.items() for role, each in roles.items())
