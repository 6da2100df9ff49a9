"""Operations that must have one candidate, found by data flow or named by the user."""

from collections.abc import Iterable, Sequence
from typing import Any

from lowbit.core.paths import is_match, nearest
from lowbit.plan.rows import Plan, Row
from lowbit.program import primitives

KINDS = ("weights", "inputs", "sums")
"""Shared weights; operations that read one value (query, key and value); operations whose results are added."""

_MOVES = primitives.COPIES | primitives.CASTS | primitives.SHAPED | {"reduce_precision"}


def tied(
    plan: Plan, rows: Sequence[Row], kinds: Sequence[str], groups: Sequence[Sequence[str]] = ()
) -> tuple[tuple[str, ...], ...]:
    """Returns the paths of rows in groups that get one candidate each, in program order; alone where nothing ties them.

    Args:
        plan: of `lowbit.bind`.
        rows: those that are decided.
        kinds: of `KINDS`.
        groups: of globs: what each matches is one group.

    Raises:
        ValueError: for an unknown kind, or a glob that matches no row.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if isinstance(kinds, str) or unknown:
        raise ValueError(f"ties must be some of {KINDS}, got {kinds!r}")
    paths = [row.path for row in rows]
    parent = {path: path for path in paths}

    def root(path: str) -> str:
        while parent[path] != path:
            path = parent[path]
        return path

    def join(some: Iterable[str]) -> None:
        known = [path for path in some if path in parent]
        for path in known[1:]:
            one, other = sorted((root(known[0]), root(path)), key=paths.index)
            parent[other] = one

    if "weights" in kinds:
        _join_by((row.weight.key if row.weight is not None else row.path, row.path) for row in rows)(join)
    if "inputs" in kinds and plan.program is not None:
        _join_by((_read(row), row.path) for row in rows)(join)
    if "sums" in kinds and plan.program is not None:
        by_equation = {id(row.operation.equation): row.path for row in plan.rows}
        for some in _summed(plan, by_equation):
            join(some)
    for group in groups:
        if isinstance(group, str) or not all(isinstance(glob, str) for glob in group):
            raise TypeError(f"groups must be lists of globs over paths, got {group!r:.60}")
        taken = []
        for glob in group:
            matching = [path for path in paths if is_match(glob, path)]
            if not matching:
                near = ", ".join(nearest(glob, paths)) or "(nothing is decided)"
                raise ValueError(f"groups: {glob!r} matches no operation that is decided; the nearest are {near}")
            taken += matching
        join(taken)
    groups_of: dict[str, list[str]] = {}
    for path in paths:
        groups_of.setdefault(root(path), []).append(path)
    return tuple(tuple(group) for group in groups_of.values())


def _join_by(pairs: Iterable[tuple[Any, str]]) -> Any:
    by_key: dict[Any, list[str]] = {}
    for key, path in pairs:
        by_key.setdefault(key, []).append(path)

    def joined(join: Any) -> None:
        for some in by_key.values():
            join(some)

    return joined


def _read(row: Row) -> Any:
    """What identifies the value that an operation reads, moves aside; an own key for a row without one."""
    index = next((i for i, site in enumerate(row.sites) if not site.is_weight), None)
    if index is None or row.weight is None or row.primitive == "gather":
        return row.path
    return id(_origin(row.operation.equation.ins[index]))


def _origin(value: Any) -> Any:
    while value.source is not None and value.source.name in _MOVES:
        value = value.source.ins[0]
    return value


def _summed(plan: Plan, by_equation: dict[int, str]) -> list[list[str]]:
    """For every sum of two values that are data, the operations that make these, through bias, scale and activation."""
    terms = []
    for equation in plan.program.inventory.program.order:
        if equation.name in ("add", "add_any") and sum(value.is_data for value in equation.ins) == 2:
            some = [path for value in equation.ins for path in _makers(value, by_equation)]
            if len(some) > 1:
                terms.append(some)
    return terms


def _makers(value: Any, by_equation: dict[int, str]) -> list[str]:
    makers, left, seen = [], [value], set()
    while left:
        equation = left.pop().source
        if equation is None or id(equation) in seen:
            continue
        seen.add(id(equation))
        if id(equation) in by_equation:
            makers.append(by_equation[id(equation)])
            continue
        data = [each for each in equation.ins if each.is_data]
        if len(data) == 1 or equation.name in ("add", "add_any"):
            left += data
    return makers
