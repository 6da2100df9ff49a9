"""Candidates: what an operation may become, as whole plans that are checked, so that nothing that cannot be is offered."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lowbit.core.quantizer import Quantizers
from lowbit.interpret.refusals import Refused
from lowbit.interpret.with_quantizers import with_quantizers
from lowbit.plan import match
from lowbit.plan.rows import Plan, Row
from lowbit.targets.refusals import check, violations
from lowbit.targets.table import lookup
from lowbit.targets.target import Target


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One candidate.

    Attributes:
        name: as text.
        plan: the plan with it wherever it fits.
        fits: the paths of the rows that it fits.
    """

    name: str
    plan: Plan
    fits: frozenset[str]


def decided(plan: Plan) -> tuple[Row, ...]:
    """Returns the rows that get a candidate: those with a quantized weight.

    Raises:
        ValueError: if there is none, or for a plan that was read from a file.
    """
    rows = tuple(row for row in plan.rows if row.weight is not None and row.weight.spec is not None)
    if not rows:
        raise ValueError("plan has no operation with a quantized weight: bind with a rule such as {'**': 'w8'}")
    if plan.program is None:
        raise ValueError("a plan read from a file does not hold what was traced: bind again")
    return rows


def name_of(candidate: Any) -> str:
    """Returns a candidate as text.

    Raises:
        TypeError: for what is no rule.
        ValueError: for a rule text that does not parse.
    """
    if not isinstance(candidate, str | Quantizers):
        raise TypeError(
            f"candidates must be rule texts, quantizers or 'keep', got {candidate!r:.40} ({type(candidate).__name__})"
        )
    return match.parse_rules({"**": candidate})[0].text.removeprefix("**: ")


def quantizers_of(row: Row, candidate: Any) -> Quantizers:
    """Returns what a candidate makes of a row: inputs stay as the plan has them where it says nothing of them."""
    given = match.parse_rules({"**": candidate})[0].quantizers
    if given == Quantizers() or given.input is not None:
        return given
    own = next((site.quantizer for site in row.sites if not site.is_weight and site.quantizer is not None), None)
    return Quantizers(given.weight, own)


def candidates_of(plan: Plan, candidates: Sequence[Any], target: str | None = None) -> tuple[Candidate, ...]:
    """Returns every candidate with its plan and the rows that it fits.

    Args:
        plan: of `lowbit.bind`.
        candidates: rule texts, quantizers or ``"keep"``.
        target: of `lowbit.targets.table.TARGETS`, which must hold it; None: any.

    Raises:
        TypeError: for what is no rule, or one text instead of several.
        ValueError: for a text that does not parse, two that are alike, an unknown target, or one that takes other plans.
    """
    if isinstance(candidates, str) or not isinstance(candidates, Sequence) or not candidates:
        raise TypeError(f"candidates must be a list of rules such as ('w4', 'w8,a8'), got {candidates!r:.60}")
    names = [name_of(candidate) for candidate in candidates]
    if len(set(names)) < len(names):
        raise ValueError(f"candidates must differ, got {', '.join(names)}")
    runs = lookup((target,))[0] if target is not None else None
    if runs is not None and runs.is_full_integer and not plan.is_full_integer:
        raise ValueError(f"target: {runs.name} takes full-integer plans only: bind with integer=True")
    return tuple(_candidate(plan, name, each, runs) for name, each in zip(names, candidates, strict=True))


def _candidate(plan: Plan, name: str, candidate: Any, target: Target | None) -> Candidate:
    rows = {row.path: row for row in decided(plan)}
    fits, planned = set(rows), plan
    while fits:
        try:
            some = frozenset(fits)
            planned = with_quantizers(
                plan, lambda row, some=some: quantizers_of(row, candidate) if row.path in some else None
            )
        except Refused as error:
            wrong = _paths(error, rows) & fits
            if not wrong:
                raise ValueError(f"candidate {name!r} fits no operation: {error}") from None
            fits -= wrong
            continue
        if target is None:
            break
        wrong = {each.path for each in violations(planned, target)} & fits
        if not wrong:
            check_whole(planned, target, fits)
            break
        fits -= wrong
    return Candidate(name, planned if fits else plan, frozenset(fits))


def check_whole(plan: Plan, target: Target, fits: set[str]) -> None:
    """Raises ValueError where a target cannot take the plan for a reason that no candidate changes."""
    if not [each for each in violations(plan, target) if each.path not in fits]:
        check(plan, (target,))


def _paths(error: Refused, rows: dict[str, Row]) -> set[str]:
    """The rows that a refusal is about, by their paths or the keys of their weights."""
    about = set(error.refusals)
    return {path for path, row in rows.items() if path in about or (row.weight is not None and row.weight.key in about)}
