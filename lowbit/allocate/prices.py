"""What every candidate costs at every operation, in every unit of a budget."""

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from lowbit.plan.costs import Cost, consumers, costs
from lowbit.plan.rows import Plan, Row, Site
from lowbit.targets.table import TARGETS

from .candidates import Candidate

Times = Mapping[str, Mapping[str, float]]
"""``{path: {candidate: milliseconds}}``"""


def prices(
    plan: Plan,
    rows: Sequence[Row],
    candidates: Sequence[Candidate],
    target: str | None = None,
    times: Times | None = None,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Returns costs ``[rows, candidates]`` by unit (``ram``: ``[moments, rows, candidates]``), and what is paid in any case.

    Args:
        plan: the plan.
        rows: those that are decided.
        candidates: what they may become; where one does not fit, its cost means nothing.
        target: whose widths ``flash`` counts with.
        times: measured milliseconds; without, there is no such unit.
    """
    shape = (len(rows), len(candidates))
    by_unit = {unit: np.zeros(shape) for unit in ("bits", "bytes", "macs", "bops", "flash")}
    inputs = np.zeros(shape)
    chosen = {row.path for row in rows}
    base = {cost.path: cost for cost in costs(plan)}
    elements = sum(base[path].elements for path in chosen)
    for c, candidate in enumerate(candidates):
        by_path = {cost.path: cost for cost in costs(candidate.plan)}
        of = {row.path: row for row in candidate.plan.rows}
        for r, row in enumerate(rows):
            cost, now = by_path[row.path], of[row.path]
            by_unit["bits"][r, c] = (cost.code_bits + cost.scale_bits) / max(elements, 1)
            by_unit["bytes"][r, c] = cost.nbytes
            by_unit["macs"][r, c] = 0 if now.is_integer else cost.macs
            by_unit["bops"][r, c] = cost.bops
            by_unit["flash"][r, c] = _flash(now, cost, target)
            inputs[r, c] = _input_bytes(now)
    by_unit["ram"] = _moments(plan, rows, inputs)
    if times is not None:
        by_unit["milliseconds"] = np.array(
            [[times[row.path][each.name] if row.path in each.fits else 0.0 for each in candidates] for row in rows]
        )
    rest = [row for row in plan.rows if row.path not in chosen]
    uncovered = sum(each.nbytes for each in plan.uncovered)
    fixed = {
        "bytes": uncovered + sum(base[row.path].nbytes for row in rest),
        "macs": sum(0 if row.is_integer else base[row.path].macs for row in rest),
        "bops": sum(base[row.path].bops for row in rest),
        "flash": uncovered + sum(_flash(row, base[row.path], target) for row in rest),
    }
    return by_unit, {unit: float(value) for unit, value in fixed.items()}


def _flash(row: Row, cost: Cost, target: str | None) -> int:
    if not cost.elements:
        return 0
    site = row.weight
    assert site is not None
    bits = cost.code_bits // cost.elements
    small = 0
    if target is not None:
        small = TARGETS[target].small_bytes
        bits = next((width for width in TARGETS[target].widths if width >= bits), bits)
    bits = max(bits, 8) if cost.elements <= small else bits
    return math.ceil(cost.elements * bits / 8) + math.ceil(cost.scale_bits / 8)


def _input_bytes(row: Row) -> int:
    """Bytes of one example's data that an operation reads."""
    site: Site | None = next((site for site in row.sites if not site.is_weight), None)
    if site is None or row.primitive == "gather":
        return 0
    bits = 8 * jnp.dtype(site.operand.dtype).itemsize if site.spec is None else site.spec.format.bits
    return math.prod(n for n in site.shape if n is not None) * math.ceil(bits / 8)


def _moments(plan: Plan, rows: Sequence[Row], inputs: np.ndarray) -> np.ndarray:
    """``[moments, rows, candidates]``: an operation and one that reads its result, or it alone."""
    place, readers = {row.path: i for i, row in enumerate(rows)}, consumers(plan)
    moments = []
    for row in rows:
        for path in [path for path in readers[row.path] if path in place] or [row.path]:
            moment = np.zeros_like(inputs)
            for each in {row.path, path}:
                moment[place[each]] = inputs[place[each]]
            moments.append(moment)
    return np.stack(moments)
