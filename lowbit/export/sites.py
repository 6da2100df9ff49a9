"""What the manifest says of every quantized operand: bits, grid, scale, rounding."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit.core.qtensor import QTensor
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan, Site

_LISTED = 1024
"""Scales up to here are listed, more are summarized: a manifest is read by people too."""

ROUNDING = "nearest_even"
"""How a value becomes a level, everywhere in lowbit: after the product with the scale's reciprocal. Sums of a full-integer plan
become codes by its named rounding."""


def sites(plan: Plan, qparams: QParams) -> list[dict[str, Any]]:
    """Returns one JSON entry per quantized operand, in program order.

    Args:
        plan: the plan.
        qparams: its packed parameters.
    """
    weights = qparams.weights()
    entries = []
    for row in plan.rows:
        for site in row.sites:
            if site.spec is None:
                continue
            entry = {
                "path": row.path,
                "operation": row.primitive,
                "role": site.role,
                "spec": site.spec.text,
                "bits": site.spec.format.bits,
                "rounding": plan.rounding if site.kind == "grid" else ROUNDING,
            }
            entries.append(entry | _grid(site, row.path, weights, qparams))
    return entries


def all_grids(plan: Plan, qparams: QParams) -> dict[str, dict[str, Any]]:
    """Returns the grid of every tensor of a full-integer plan, by the path of the step that names it."""
    return {
        path: {"spec": site.spec.text, "bits": site.spec.format.bits} | _of_state(qparams.sites[path])
        for path, site in plan.grids().items()
        if site.spec is not None
    }


def _grid(site: Site, path: str, weights: dict[str, QTensor], qparams: QParams) -> dict[str, Any]:
    assert site.spec is not None
    if site.spec.dynamic:
        return {"scale": "computed at run time"}
    if site.is_weight:
        q = weights.get(site.key, weights.get(path))
        return {} if q is None else {"scale": _numbers(q.scale_values), "zero": _numbers(q.zero)}
    if site.kind == "grid":
        return _of_state(qparams.sites[site.key])
    states = [qparams.sites.get(key, {}) for key in (path, site.key)]
    state = next((s[role] for s in states for role in (site.role, "output") if isinstance(s.get(role), dict)), None)
    return {} if state is None else _of_state(state)


def _of_state(state: Mapping[str, Any]) -> dict[str, Any]:
    return {"scale": _numbers(state.get("scale")), "zero": _numbers(state.get("zero"))}


def _numbers(x: Any) -> Any:
    if x is None:
        return None
    values = np.asarray(x.dequantize() if isinstance(x, QTensor) else x, np.float32).ravel()
    if values.size == 1:
        return float(values[0])
    if values.size <= _LISTED:
        return [float(v) for v in values]
    return {"count": int(values.size), "smallest": float(values.min()), "largest": float(values.max())}
