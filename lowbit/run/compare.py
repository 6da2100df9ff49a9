"""Finished runs beside each other: one table of several, and what two differ in."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit.report import tables

from .folder import read_json

_KEYS = {"values", "measured", "errors"}
"""Of which a row has one."""


def read_run(folder: Path) -> dict[str, Any]:
    """Returns the summary of a finished run, with its config under ``"asked"``.

    Raises:
        ValueError: if there is none, it has no rows, or they are those of a lowbit before `lowbit.run`.
    """
    summary = next(
        (each for name in ("summary.json", "study.json") if (each := read_json(folder / name)) is not None), None
    )
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give that of a run that ended, such as runs/demo")
    if not isinstance(summary, dict) or not isinstance(summary.get("rows"), dict):
        inner = sorted(path.parent for path in folder.glob("*/summary.json"))
        hint = f"those in it, such as {inner[0]}" if inner else "that of a run that ended, such as runs/demo"
        raise ValueError(f"{folder} has no summary of rows: give {hint}")
    rows = summary["rows"].values()
    if rows and not any(isinstance(row, dict) and _KEYS & row.keys() for row in rows):
        raise ValueError(f"{folder} is of an earlier lowbit, which kept no values by seed: run its config again")
    return summary | {"asked": read_json(folder / "config.json") or {}}


def changes(one: Any, other: Any, lead: str = "") -> list[tuple[str, str, str]]:
    """Returns where two configs differ: path, value of the first, value of the second; ``-`` where there is none.

    Items of a list that have names go by them.

    Example:
        >>> changes({"fit": {"lr": 0.1}, "name": "a"}, {"fit": {"lr": 0.2}, "name": "a"})
        [('fit.lr', '0.1', '0.2')]
    """
    one, other = _by_name(one), _by_name(other)
    if isinstance(one, Mapping) and other == []:
        other = {}
    if isinstance(other, Mapping) and one == []:
        one = {}
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = [*one, *(key for key in other if key not in one)]
        return [
            line
            for key in keys
            for line in changes(one.get(key, _NONE), other.get(key, _NONE), f"{lead}.{key}" if lead else str(key))
        ]
    return [] if one == other else [(lead, _text(one), _text(other))]


_NONE = object()


def _text(value: Any) -> str:
    text = "-" if value is _NONE else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


_LONGEST = 60
"""Letters of a value, such as of a whole method that the other run does not have."""


def _by_name(value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(each, Mapping) and "name" in each for each in value):
        return {each["name"]: each for each in value}
    return value


def diff(one: Path, other: Path) -> tuple[tables.Table, tables.Table]:
    """Returns what two runs were asked differently, and their rows beside each other.

    Raises:
        ValueError: if one of them is no finished run.
    """
    left, right = read_run(one), read_run(other)
    asked = [list(line) for line in changes(left["asked"], right["asked"])]
    for key in ("commit", "metric"):
        asked += [[key, *map(str, pair)] for pair in [(left.get(key), right.get(key))] if pair[0] != pair[1]]
    for group in ("versions", "device"):
        asked += [list(line) for line in changes(left.get(group, {}), right.get(group, {}), group)]
    names = [*left["rows"], *(name for name in right["rows"] if name not in left["rows"])]
    rows = []
    for name in names:
        before, after = (_values(run["rows"].get(name, {})) for run in (left, right))
        if name in left["rows"] and name in right["rows"] and before == after:
            change = "same"
        else:
            change = f"{sum(after) / len(after) - sum(before) / len(before):+.3f}" if before and after else "-"
        rows.append([name, tables.spread(before, 3), tables.spread(after, 3), change])
    return (
        tables.Table("asked", ["what", one.name, other.name], asked),
        tables.Table(str(left.get("metric") or "no metric"), ["method", one.name, other.name, "change"], rows),
    )


def report(folders: Sequence[Path]) -> tables.Table:
    """Returns a row per method and a column per run.

    Raises:
        ValueError: if one of them is no finished run.
    """
    runs = [read_run(folder) for folder in folders]
    names = list(dict.fromkeys(name for each in runs for name in each["rows"]))
    rows = [[name, *(tables.spread(_values(each["rows"].get(name, {})), 3) for each in runs)] for name in names]
    metrics = dict.fromkeys(str(each.get("metric") or "no metric") for each in runs)
    return tables.Table(", ".join(metrics), ["method", *(folder.name for folder in folders)], rows)


def _values(row: Mapping[str, Any]) -> list[float]:
    return [float(value) for value in row.get("values", ())]
