"""The plan as JSON: specs and paths, never code. A plan read back serves; it does not train."""

import dataclasses
import json
from typing import Any

from lowbit.core.spec import Operand, Spec
from lowbit.formats.lookup import spec_from_text

from .rows import Plan, Row, Site, Step, Uncovered

VERSION = 1


def _site_to_json(site: Site) -> dict[str, Any]:
    return {
        "role": site.role,
        "kind": site.kind,
        "key": site.key,
        "leaves": list(site.leaves),
        "operand": dataclasses.asdict(site.operand),
        "spec": None if site.spec is None else site.spec.text,
        "quantizer": site.method or None,
        **({"own_code": True} if site.own_code else {}),
    }


def _site_from_json(data: dict[str, Any]) -> Site:
    operand = data["operand"]
    spec: Spec | None = None
    if data["spec"] is not None:
        spec = spec_from_text(data["spec"], is_weight=data["role"] == "weight")
    return Site(
        role=data["role"],
        kind=data["kind"],
        key=data["key"],
        leaves=tuple(data["leaves"]),
        operand=Operand(
            tuple(operand["shape"]),
            operand["dtype"],
            tuple(operand["contract"]),
            operand["stack"],
            operand["is_weight"],
        ),
        spec=spec,
        text=data["quantizer"] or "",
        is_lost=data.get("own_code", False),
    )


def to_json(plan: Plan) -> str:
    """Returns the plan as JSON text."""
    rows = [
        {
            "path": row.path,
            "primitive": row.primitive,
            "sites": [_site_to_json(site) for site in row.sites],
            "stack": list(row.stack),
            "rule": row.rule,
            "feature_groups": row.feature_groups,
            "batch": list(row.batch),
            "macs": row.macs,
            "source": row.source,
        }
        for row in plan.rows
    ]
    data: dict[str, Any] = {"version": VERSION, "rows": rows, "unseen": plan.unseen, "dropped": plan.dropped}
    data["uncovered"] = [dataclasses.astuple(leaf) for leaf in plan.uncovered]
    if plan.is_full_integer:
        data |= {"steps": [_step_to_json(step) for step in plan.steps], "rounding": plan.rounding}
    return json.dumps(data, separators=(",", ":"))


def _step_to_json(step: Step) -> dict[str, Any]:
    site = None if step.site is None else _site_to_json(step.site)
    return {field.name: getattr(step, field.name) for field in dataclasses.fields(step)} | {"site": site}


def _step_from_json(data: dict[str, Any]) -> Step:
    site = None if data["site"] is None else _site_from_json(data["site"])
    lists = {name: tuple(data[name]) for name in ("inputs", "absorbed", "scope")}
    return Step(**{**data, **lists, "site": site})


def from_json(text: str) -> Plan:
    """Returns the plan that `to_json` wrote, without quantizers.

    Raises:
        ValueError: if it is not a plan, or of a newer version.
    """
    try:
        data = json.loads(text)
        version = data["version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"this is not a lowbit plan: {error}") from None
    if version != VERSION:
        raise ValueError(f"this plan has version {version}; this lowbit reads version {VERSION}")
    rows = tuple(
        Row(
            path=row["path"],
            primitive=row["primitive"],
            sites=tuple(_site_from_json(site) for site in row["sites"]),  # pyright: ignore[reportArgumentType]
            stack=tuple(row["stack"]),
            rule=row["rule"],
            feature_groups=row["feature_groups"],
            batch=tuple(row.get("batch", ())),
            macs=row["macs"],
            source=row["source"],
        )
        for row in data["rows"]
    )
    steps = tuple(_step_from_json(step) for step in data.get("steps", ()))
    unseen = tuple((a, b) for a, b in data["unseen"])
    uncovered = tuple(Uncovered(path, size, tuple(uses)) for path, size, uses in data.get("uncovered", ()))
    return Plan(
        rows, unseen, tuple(data["dropped"]), uncovered=uncovered, steps=steps, rounding=data.get("rounding", "")
    )
