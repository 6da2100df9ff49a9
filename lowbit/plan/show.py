"""The plan as a table."""

import math
from collections.abc import Sequence
from typing import Any

from lowbit.core.aligned import aligned, shown

from .costs import weight_bits
from .rows import Plan, Row, Site, Uncovered

_HEADS = ("path", "op", "weight", "inputs", "shape", "MACs", "bytes", "bits/w", "rule")


def _spec(site: Site | None) -> str:
    if site is None or site.spec is None:
        return site.operand.dtype if site is not None and is_of_integers(site) else "float"
    return site.spec.text


def is_of_integers(site: Site) -> bool:
    """Returns whether an operand has no grid because it is no float."""
    return site.operand.dtype.startswith(("int", "uint", "bool"))


def _inputs(row: Row) -> str:
    if row.primitive == "gather":
        return "-"
    texts = [_spec(site) for site in row.sites if not site.is_weight]
    return " x ".join(dict.fromkeys(texts))


def _count(n: int | float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= size:
            return f"{n / size:.3g}{suffix}"
    return f"{n:.0f}"


def cells(row: Row) -> dict[str, Any]:
    """Returns one row of the table, as text by column."""
    weight = row.weight
    shape = "x".join(str(n) for n in weight.operand.shape) if weight else "-"
    stored = weight_bits(weight) if weight else 0.0
    elements = math.prod(weight.operand.shape) if weight else 0
    flags = "" if weight is None or weight.kind == "leaf" else f" ({weight.kind})"
    mixed = " (mixed)" if any(site.kind == "mixed" for site in row.sites) else ""
    return {
        "path": row.path + flags + mixed,
        "op": {"dot_general": "dot", "conv_general_dilated": "conv", "gather": "embed"}[row.primitive],
        "weight": _spec(weight) if weight else "-",
        "inputs": _inputs(row),
        "shape": shape + (f" in {'x'.join(map(str, row.stack))} layers" if row.stack else ""),
        "MACs": _count(row.macs),
        "bytes": _count(math.ceil(stored / 8)) if weight else "-",
        "bits/w": f"{stored / elements:.2f}" if elements else "-",
        "rule": row.rule,
    }


def table(plan: Plan) -> str:
    """Returns the plan as text: a line per operation, then totals and everything that is not quantized."""
    lines = [cells(row) for row in plan.rows]
    cut = [_HEADS, *([str(line[head]) for head in _HEADS] for line in lines)]
    text = aligned(cut, range(len(_HEADS)), ruled=True)
    rule = text[1]
    weights = {site.key: site for row in plan.rows for site in row.sites if site.is_weight}.values()
    stored = sum(weight_bits(site) for site in weights)
    elements = sum(math.prod(site.operand.shape) for site in weights)
    in_float = [row.path for row in plan.rows if not row.is_quantized and not is_of_integers(row.sites[0])]
    of_integers = [row.path for row in plan.rows if not row.is_quantized and is_of_integers(row.sites[0])]
    text += [
        rule,
        f"{len(plan.rows)} operations, {_count(sum(r.macs for r in plan.rows))} MACs, {_count(elements)} weights",
    ]
    if elements:
        text[-1] += f" in {_count(math.ceil(stored / 8))} bytes ({stored / elements:.2f} bits per weight with scales)"
    if in_float:
        text.append(f"left in float: {', '.join(in_float)}")
    if of_integers:
        text.append(f"of integers, left as they are: {', '.join(of_integers)}")
    if plan.uncovered:
        text += _uncovered(plan.uncovered)
    if plan.unseen:
        text.append(
            "unseen (may hide a matmul): " + ", ".join(f"{name} at {line or '?'}" for name, line in plan.unseen)
        )
    if own := [f"{row.path} ({row.own_gradient})" for row in plan.rows if row.own_gradient and row.is_quantized]:
        text.append(
            f"in functions with gradients of their own, simulated with custom_vjp='body' only: {', '.join(own)}"
        )
    if plan.dropped:
        text.append(
            f"not stored, only {'integer constants' if plan.steps else 'derived weights'} need them: {', '.join(plan.dropped)}"
        )
    if plan.steps:
        text += ["", *_steps(plan)]
    return "\n".join(text)


_SHOWN = 12
"""Parameters named after one primitive; the plan has all of them."""


def _uncovered(leaves: Sequence[Uncovered]) -> list[str]:
    """A line per set of primitives, largest parameters first."""
    by_use: dict[str, list[Uncovered]] = {}
    for leaf in sorted(leaves, key=lambda leaf: -leaf.nbytes):
        by_use.setdefault(", ".join(leaf.primitives) or "nothing", []).append(leaf)
    total = sum(leaf.nbytes for leaf in leaves)
    text = [f"parameters of no operation, stored as they are, {_count(total)} bytes; by what takes them:"]
    for use, group in by_use.items():
        named = ", ".join(f"{leaf.path} {_count(leaf.nbytes)}" for leaf in group[:_SHOWN])
        rest = group[_SHOWN:]
        more = f", and {len(rest)} more of {_count(sum(leaf.nbytes for leaf in rest))}" if rest else ""
        text.append(f"  {shown(f'{use}: {named}{more}')}")
    return text


def _steps(plan: Plan) -> list[str]:
    heads = ("step", "kind", "grid", "spec", "reads", "absorbs", "source")
    grids = plan.grids()
    lines = [
        (
            "  " * len(step.scope) + step.path,
            step.kind,
            "own" if step.site is not None else step.grid,
            _spec(grids.get(step.grid)),
            ", ".join(step.inputs) or "-",
            ", ".join(step.absorbed) or "-",
            step.source,
        )
        for step in plan.steps
    ]
    text = aligned([heads, *lines], range(len(heads)), ruled=True)
    return [*text, f"{len(grids)} grids, rounding {plan.rounding}"]
