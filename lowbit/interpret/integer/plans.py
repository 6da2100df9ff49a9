"""From a placement to plan rows, and from plan rows back to the placement of another trace."""

import dataclasses
from collections.abc import Iterable, Sequence

import jax.numpy as jnp

from lowbit.core.quantizer import Quantizer
from lowbit.core.spec import Channel, Group, Operand, Spec, Tensor
from lowbit.interpret.refusals import Refusals, Refused
from lowbit.interpret.trace import Trace
from lowbit.plan.rows import Plan, Row, Site, Step

from .flat import flatten
from .nodes import Node, Placement
from .ops import kind_named
from .ops.scan import Turns
from .place import place


def program_of(traced: Trace) -> Placement:
    """Returns the integer form of a trace.

    Raises:
        ValueError: for what has no integer form (rule f).
    """
    if "placed" not in traced.memo:
        traced.memo["placed"] = place(flatten(traced), traced.inventory.by_address)
    return traced.memo["placed"]


def program_for(plan: Plan, traced: Trace) -> Placement:
    """Returns the integer form of a trace, if it is that of the plan.

    Raises:
        ValueError: where the two differ, with the first step that does.
    """
    program = program_of(traced)
    steps = _bare_steps(program)
    own, planned = [_skeleton(s) for s in steps], [_skeleton(s) for s in plan.steps]
    if own != planned:
        at = next((i for i, (a, b) in enumerate(zip(own, planned, strict=False)) if a != b), None)
        what = f"{len(own)} steps, not {len(planned)}"
        if at is not None:
            what = f"step {own[at]} ({steps[at].source}) where the plan has {planned[at]} ({plan.steps[at].source})"
        raise ValueError(f"this function's integer steps are not those of the plan: it has {what}; bind a plan for it")
    ranks = {node.path: len(node.out.shape) for node, _ in program.everywhere() if node.outs}
    for path, site in plan.grids().items():
        if max(ranks[path], 1) != max(len(site.operand.shape), 1):
            raise ValueError(
                f"{path} has {ranks[path]} axes in this call and {len(site.operand.shape)} in the plan: a full-integer plan holds "
                f"constants in the shapes it was bound with; give arguments of as many axes as then, or bind a plan for these"
            )
    return program


def _skeleton(step: Step) -> tuple[object, ...]:
    return step.path, step.kind, step.inputs, step.grid, step.absorbed, step.scope


def _bare_steps(program: Placement) -> list[Step]:
    places = program.everywhere()
    makers = {out: node.path for node, _ in places for out in node.outs}
    for node, _ in places:
        if node.loop is not None:
            inner = (*node.known_as(Turns).carries, *node.loop.slices)
            makers.update(zip(inner, (makers[v] for v in node.ins), strict=True))
    return [
        Step(
            node.path,
            node.kind,
            tuple(makers[v] for v in node.ins),
            program.grids.get(node.out, "") if node.outs else "",
            node.absorbed,
            scope,
            None,
            node.source,
        )
        for node, scope in places
    ]


def steps_of(
    program: Placement, rows: Sequence[Row], refused: Refusals, known: frozenset[str] = frozenset()
) -> tuple[tuple[Row, ...], tuple[Step, ...]]:
    """Returns the rows, their inputs on grids, and the steps.

    A grid has the quantizer of the operations that read it; where none does, that of the operation that makes it, or of
    what it is made from. It has the axes of its first value, and one at least: others that share it may have more.

    Raises:
        ValueError: for operations that are not integer, or that want one grid in two ways.
    """
    by_path = {row.path: row for row in rows}
    quantizers = _quantizers(program, by_path, refused, known)
    site_of = {
        node.path: Site(
            "output",
            "grid",
            node.path,
            (),
            Operand((0,) * max(len(node.out.shape), 1), str(node.out.dtype), (), 0, is_weight=False),
            quantizers[node.path].spec,
            quantizers[node.path],
        )
        for node, _ in program.everywhere()
        if node.path in quantizers
    }
    for node, _ in program.everywhere():
        specs = [quantizers[program.grids[v]].spec for v in node.ins if v in program.grids]
        refused.attempt(node.path, lambda node=node, specs=specs: _check_long(node, specs), source=node.source)
    refused.check()
    steps = tuple(dataclasses.replace(step, site=site_of.get(step.path)) for step in _bare_steps(program))
    nodes = {node.path: node for node, _ in reversed(program.everywhere())}
    return tuple(_on_grids(row, program, nodes.get(row.path)) for row in rows), steps


def _on_grids(row: Row, program: Placement, node: Node | None) -> Row:
    if node is None or not kind_named(node.kind).reads_grids:  # of integers alone, or with indices for inputs
        return row
    grids = iter([program.grids[v] for v in node.ins])
    sites = tuple(s if s.is_weight else dataclasses.replace(s, kind="grid", key=next(grids)) for s in row.sites)
    return dataclasses.replace(row, sites=sites)


def check_rows(rows: Iterable[Row], refused: Refusals) -> None:
    """Notes operations that are not in the integers that integer=True can hold."""
    for row in rows:
        if row.path not in refused.by_path:
            instead = None if _integers(row) else {row.path: "w8,a8"}
            refused.attempt(row.path, lambda row=row: _check_row(row), instead, source=row.source)


def check_new(refused: Refusals, known: frozenset[str]) -> None:
    """Raises what was refused besides what is known; nothing where that is nothing."""
    new = Refusals()
    new.by_path = {path: refusal for path, refusal in refused.by_path.items() if path not in known}
    new.check()


def _quantizers(
    program: Placement, rows: dict[str, Row], refused: Refusals, known: frozenset[str]
) -> dict[str, Quantizer]:
    readers: dict[str, tuple[Quantizer, str]] = {}
    places = [node for node, _ in program.everywhere()]
    check_rows([rows[node.path] for node in places if node.op is not None], refused)
    for node in places:
        if node.op is None or not kind_named(node.kind).reads_grids or node.path in refused.by_path:
            continue
        row = rows[node.path]
        data = [site for site in row.sites if not site.is_weight]
        for site, var in zip(data, node.ins, strict=True):
            grid = program.grids[var]
            assert site.quantizer is not None
            if site.own_code:
                refused.add(
                    row.path,
                    f"integer=True: the {site.role} of {row.path} is quantized by {site.own_code}, whose own rounding or range "
                    f"integers cannot follow; use an input quantizer that its spec describes, such as rtn's, which rounds to "
                    f"nearest even (a quantizer of yours says so in `served_by_spec`)",
                    source=row.source,
                )
            before = readers.setdefault(grid, (site.quantizer, row.path))
            if before[0] != site.quantizer:
                refused.add(
                    row.path,
                    f"integer=True: {before[1]} and {row.path} read one grid, {grid}, with different inputs "
                    f"({before[0].text} and {site.quantizer.text}); give both rules the same 'a' part",
                    source=row.source,
                )
    if refused.by_path:  # what is known already is raised by whoever knows it
        check_new(refused, known)
        raise Refused({}, "")
    default = next((q for q, _ in readers.values()), None)
    if default is None:
        raise ValueError("integer=True: the function has no quantized matmul or convolution, so nothing says the bits")
    chosen = {grid: quantizer for grid, (quantizer, _) in readers.items()}
    for node in places:
        if not node.outs or node.out not in program.grids:
            continue
        grid = program.grids[node.out]
        if grid not in chosen:
            chosen[grid] = _inherited(node, program, rows, chosen) or default
    return chosen


def _check_long(node: Node, specs: Sequence[Spec | None]) -> None:
    """Raises where a node adds more 16-bit codes than its sums hold."""
    if all(spec is None or spec.format.bits <= 8 for spec in specs):
        return
    count, most = kind_named(node.kind).most_long(node) or (0, 0)
    if count > most:
        raise ValueError(
            f"integer=True: the {node.kind} at {node.path} ({node.source}) is over {count} codes of 16 bits, and holds "
            f"{most}: use a8 around it"
        )


def _inherited(node: Node, program: Placement, rows: dict[str, Row], chosen: dict[str, Quantizer]) -> Quantizer | None:
    if node.op is not None and kind_named(node.kind).reads_grids:
        return next(s.quantizer for s in rows[node.path].sites if not s.is_weight)
    return next((chosen[program.grids[v]] for v in node.ins if program.grids.get(v) in chosen), None)


def _integers(row: Row) -> dict[str, str]:
    """The dtypes of operands of integers, by role; none of a look-up's indices."""
    sites = row.sites[:1] if row.primitive == "gather" else row.sites
    return {s.role: s.operand.dtype for s in sites if not jnp.issubdtype(jnp.dtype(s.operand.dtype), jnp.floating)}


def _check_row(row: Row) -> None:
    """Raises where an operation is not in the integers that integer=True can hold."""
    for role, dtype in _integers(row).items():
        raise ValueError(
            f"integer=True: the {role} of {row.path} ({row.source}) is {dtype}, which has no grid; cast it to float where the "
            f"function reads it"
        )
    for site in row.sites:
        if row.primitive == "gather" and not site.is_weight:
            continue  # indices
        where = f"integer=True: the {site.role} of {row.path} ({row.source})"
        if site.spec is None:
            raise ValueError(f"{where} is left in float by the rule {row.rule!r}; give it a rule such as 'w8,a8'")
        is_dot = row.primitive == "dot_general" and row.sites[1].is_weight
        reason = _why_not(site.spec, is_weight=site.is_weight, is_dot=is_dot)
        if reason:
            raise ValueError(f"{where} is {site.spec.text}: {reason}")


def _why_not(spec: Spec, *, is_weight: bool, is_dot: bool) -> str | None:
    numbers = spec.format
    if not numbers.is_integer or not numbers.is_signed or numbers.low != int(numbers.low) or not numbers.has_rounding:
        return "codes must be signed integers, int2 to int8, or int16 of inputs"
    if numbers.bits > 8 and is_weight:
        return "16 bits are for inputs; quantize weights to 8 bits or less"
    if numbers.bits > 8 and not spec.symmetric:
        return "grids of 16 bits have no zero point, so that products of two fit 32 bits; use aint16"
    if spec.dynamic:
        return "a scale computed at run time is a float; use a static one"
    if is_weight and not spec.symmetric and not is_dot:
        return "only a weight on the right of a dot may have zero points; use /sym"
    if is_weight and not isinstance(spec.merged.granularity, Channel | Tensor | (Group if is_dot else Tensor)):
        return "its scale may differ between output channels, and of a weight on the right of a dot between groups; use /channel"
    return None
