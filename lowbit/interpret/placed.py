"""What `bind` checks of rows together: weights that operations share, and scales that follow weights to where they are used."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from lowbit.plan.rows import Plan, Row, Site

from .refusals import Refusals
from .state import QState, abstract_state
from .trace import Trace


def check_shared(
    rows: Sequence[Row], refused: Refusals, rules: Mapping[str, Any], globs: Mapping[str, str | None]
) -> None:
    """Notes weights that several operations have, in ways that one stored weight cannot serve.

    Args:
        rows: of a plan.
        refused: where refusals are noted; operations that are there already are passed over.
        rules: what was bound with.
        globs: which rule took every operation.
    """
    first: dict[str, tuple[Row, Site]] = {}
    for row in rows:
        for site in row.sites:
            if site.kind != "leaf" or row.path in refused.by_path:
                continue
            other, before = first.setdefault(site.key, (row, site))
            both = f"{other.path} ({other.source}) and {row.path} ({row.source}) share the weight {site.key}"
            if site.quantizer != before.quantizer:
                refused.add(
                    row.path,
                    f"{both} but have different rules ({other.rule!r} and {row.rule!r}); one weight is stored once: give "
                    f"both the same weight part",
                    _as_rule(row.base, rules.get(globs.get(other.path) or "")),
                )
                continue
            per_tensor = site.spec is None or site.spec.granularity.is_one_per_array
            axes, those = site.operand, before.operand
            if not per_tensor and (axes.contract, axes.stack) != (those.contract, those.stack):
                refused.add(
                    row.path,
                    f"{both} but contract different axes ({those.contract} and {axes.contract} of {axes.shape}), so no "
                    f"channel scale serves both: use w<bits>/tensor for both, or keep one",
                    _as_rule(row.base, _per_tensor(rules.get(globs.get(row.path) or ""))),
                )


def _as_rule(path: str, rule: Any) -> dict[str, str]:
    return {path: rule if isinstance(rule, str) else "keep"}


_SHARES = re.compile(r"/(channel|tensor|g\d+|t\d+x\d+)")


def _per_tensor(rule: Any) -> Any:
    """A rule text whose weights have one scale."""
    if not isinstance(rule, str):
        return rule
    weight, *rest = rule.split(",")
    name, *options = _SHARES.sub("", weight).split("/")
    return ",".join(["/".join([name, "tensor", *options]), *rest])


Simulated = Callable[[Plan, Trace, QState], Any]
"""``(plan, trace, qstate) -> result`` of `lowbit.simulate`."""


def check_moves(plan: Plan, traced: Trace, refused: Refusals, simulated: Simulated) -> None:
    """Runs a simulation abstractly, and notes every weight whose scale cannot follow it.

    Args:
        plan: an ordinary plan; operations that are refused already are left in float.
        traced: what the plan was bound to.
        refused: where refusals are noted.
        simulated: computes a simulation.
    """
    kept = _only(plan, {row.path for row in plan.rows if row.path not in refused.by_path})
    for row, error in _failing(traced, kept, kept.quantized, simulated):
        refused.add(row.path, f"{row.path} ({row.source}): {error}", {row.path: "keep"})


def _failing(traced: Trace, plan: Plan, rows: Sequence[Row], simulated: Simulated) -> list[tuple[Row, ValueError]]:
    """The operations whose weight does not arrive: halves that fail are halved again, so that few runs find them."""
    try:
        _run(traced, _only(plan, {row.path for row in rows}), simulated)
    except ValueError as error:
        if len(rows) == 1:
            return [(rows[0], error)]
        half = len(rows) // 2
        failing = [*_failing(traced, plan, rows[:half], simulated), *_failing(traced, plan, rows[half:], simulated)]
        return failing or [(rows[0], error)]
    return []


def _only(plan: Plan, paths: set[str]) -> Plan:
    """The plan with other operations in float."""

    def bare(row: Row) -> Row:
        sites = tuple(dataclasses.replace(site, spec=None, quantizer=None) for site in row.sites)
        return dataclasses.replace(row, sites=sites)

    return dataclasses.replace(plan, rows=tuple(row if row.path in paths else bare(row) for row in plan.rows))


def _run(traced: Trace, plan: Plan, simulated: Simulated) -> None:
    if not plan.quantized:
        return

    def run(leaves: list[Any], state: Any) -> Any:
        return simulated(plan, dataclasses.replace(traced, leaves=leaves), state)

    jax.eval_shape(run, traced.avals, abstract_state(plan))
