"""The plan as JSON: specs and paths, never code. A plan read back serves; it does not train."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lowbit.core import json_text
from lowbit.core.quantizer import Quantizer, Quantizers
from lowbit.core.spec import Operand, Spec
from lowbit.formats.lookup import spec_from_text

from . import valid
from .geometry import as_tuple, from_data, to_data
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
        **({"shape": list(site.shape)} if site.shape else {}),
        **({"axes": site.axes} if site.axes else {}),
        **({"flipped": list(site.flipped)} if site.flipped else {}),
    }


def _site_from_json(data: dict[str, Any], known: Mapping[str, Quantizer]) -> Site:
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
        quantizer=known.get(data["quantizer"] or ""),
        text="" if data["quantizer"] in known else data["quantizer"] or "",
        is_lost=data.get("own_code", False),
        shape=tuple(data.get("shape", ())),
        axes=as_tuple(data.get("axes", ())),
        flipped=tuple(data.get("flipped", ())),
    )


def _each(given: Quantizer | Quantizers) -> list[Quantizer]:
    pair = (given.weight, given.input) if isinstance(given, Quantizers) else (given,)
    return [q for q in pair if q is not None]


def _sites(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for row in data["rows"]:
        yield from row["sites"]
    yield from (step["site"] for step in data.get("steps", ()) if step["site"])


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
            **({} if row.geometry is None else {"geometry": to_data(row.geometry)}),
            **({"producers": row.producers} if row.producers else {}),
            **({"own_gradient": row.own_gradient} if row.own_gradient else {}),
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


def _step_from_json(data: dict[str, Any], known: Mapping[str, Quantizer]) -> Step:
    site = None if data["site"] is None else _site_from_json(data["site"], known)
    lists = {name: tuple(data[name]) for name in ("inputs", "absorbed", "scope")}
    return Step(**{**data, **lists, "site": site})


def from_json(text: str, *, quantizers: Iterable[Quantizer | Quantizers] = ()) -> Plan:
    """Returns the plan that `to_json` wrote; ``to_json(from_json(text)) == text``.

    A file holds no code: a quantizer is kept as its text, and the plan executes. It simulates, trains and packs with the
    quantizers given here, each of which takes the place of its own text.

    Args:
        text: what `to_json` returned.
        quantizers: those that the plan was bound with; those of no site in it are an error.

    Raises:
        TypeError: if it is no text.
        ValueError: if it is not a plan, of a newer version, if a field is not what `lowbit.bind` makes, or if no site of it has
            one of the quantizers.
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be what lowbit.plan.serial.to_json wrote, got {type(text).__name__}")
    known = {q.text: q for given in quantizers for q in _each(given)}
    try:
        data = json_text.parse_json(text)
        version = data["version"]
        is_known = type(version) is int and version == VERSION
        plan = _from_data(data, known) if is_known else Plan(())
        valid.check(plan)
        texts = {site["quantizer"] for site in _sites(data) if site["quantizer"]} if is_known else set()
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise ValueError(f"this is not a lowbit plan: {type(error).__name__}: {error!s:.200}") from None
    except ValueError as error:
        raise ValueError(f"this is not a lowbit plan: {error}") from None
    if not is_known:
        raise ValueError(
            f"this plan has version {version!r:.40}; this lowbit reads version {VERSION}: install a newer lowbit, or bind again"
        )
    if lost := sorted(known.keys() - texts):
        raise ValueError(
            f"no site of this plan has the quantizer {lost[0]}; they have {', '.join(sorted(texts)) or 'none'}"
        )
    return plan


def _from_data(data: dict[str, Any], known: Mapping[str, Quantizer]) -> Plan:
    rows = tuple(
        Row(
            path=row["path"],
            primitive=row["primitive"],
            sites=tuple(_site_from_json(site, known) for site in row["sites"]),  # pyright: ignore[reportArgumentType]
            stack=tuple(row["stack"]),
            rule=row["rule"],
            feature_groups=row["feature_groups"],
            batch=tuple(row.get("batch", ())),
            macs=row["macs"],
            source=row["source"],
            geometry=from_data(row.get("geometry")),
            producers=tuple(row.get("producers", ())),
            own_gradient=row.get("own_gradient", ""),
        )
        for row in data["rows"]
    )
    steps = tuple(_step_from_json(step, known) for step in data.get("steps", ()))
    unseen = tuple((a, b) for a, b in data["unseen"])
    uncovered = tuple(Uncovered(path, size, tuple(uses)) for path, size, uses in data.get("uncovered", ()))
    return Plan(
        rows, unseen, tuple(data["dropped"]), uncovered=uncovered, steps=steps, rounding=data.get("rounding", "")
    )
