"""How a run ends: one table, ``summary.json``, ``report.html``; drawn from measurements alone."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lowbit.core import atomic
from lowbit.report import figures, page, tables

from . import sections as parts
from .environment import command
from .evals import grids
from .evals.column import Column, gap, mean, size, spread, worst
from .experiment import FLOAT, Experiment
from .folder import TIMES, RunFolder, write_json
from .results import Measured, Results, deviation
from .screen import Console, console

NOTES = {
    "bits/w": "stored bits per weight, scales included",
    "file": "the packed checkpoint",
    "sim-exec": "largest difference of an output over all seeds",
    "export": "the StableHLO artifact, deflated",
    "vmfb": "the module IREE compiled",
    "exec-IREE": "as sim-exec",
    " ms b": "median time of a call with so many samples; (2x) is twice as fast as float in the same runtime",
    "flash": "code and constants of the compiled model",
    "RAM": "its static memory and deepest stack",
    "differ": "outputs that are not those of lowbit.execute",
    " us": "microseconds a sample on one core",
    "M4 Minstr": "millions of instructions on a Cortex-M4",
    "on IREE": "the metric there",
}
"""What heads of columns, or parts of them, mean."""
CAPTION = (
    "Orange lines are the numbers the format can hold; outside them values are clipped. Weights are shown in steps of "
    "their own scale, so channels with different scales share one grid. The operations with most rounding noise."
)


def columns(config: Experiment) -> list[Column]:
    """Returns the columns of an experiment's table: those of every piece, then those of its evals."""
    metric = config.metric
    shown = []
    if metric is not None:
        shown.append(Column(metric.name, ("metric", "execute"), spread(metric.digits)))
        shown.append(Column("- float", ("metric", "execute"), gap(metric.digits)))
    shown += [Column("bits/w", ("bits_per_weight",), mean(".2f")), Column("file", ("bytes", "file"), size)]
    if metric is not None or any(each.name == "beside_float" for each in config.evals):
        shown.append(Column("sim-exec", ("difference", "execute", "max"), worst))
    return [*shown, *(column for each in config.evals for column in each.columns)]


def table(results: Results) -> tables.Table:
    """Returns the table of the run: a row per method; a method that failed for every seed is a row with its error."""
    asked = columns(results.experiment)
    lines = []
    if results.guess is not None and results.experiment.metric is not None:
        name, value = results.guess
        lines.append([name, f"{value:.{results.experiment.metric.digits}f}", *["-"] * (len(asked) - 1)])
    for row in results.rows:
        if row.results:
            lines.append([row.name, *_cells(row, results.float_row, asked)])
        elif row.errors:
            lines.append([row.name, "failed", *["-"] * (len(asked) - 1)])
    title = f"{results.experiment.name}, {len(results.experiment.seeds)} seed(s)"
    return tables.Table(title, ["method", *(column.head for column in asked)], lines)


def legend(metric: str | None, shown: tables.Table) -> str:
    """Returns what the columns of a table mean, of those that it has."""
    said = "packed weights read back from the file, mean ± standard deviation over seeds"
    lines = [] if metric is None else [f"{metric}: {said}"]
    lines += [
        f"{head.strip()}: {text}" for head, text in NOTES.items() if any(head in f" {name}" for name in shown.columns)
    ]
    return ". ".join(lines) + "."


def _cells(row: Measured, base: Measured, asked: Sequence[Column]) -> list[str]:
    cells = []
    for column in asked:
        values = row.values(*column.of)
        cells.append(column.text(values, values if row is base else base.values(*column.of)))
    return cells


def standard(results: Results) -> None:
    """Writes ``table.txt``, ``summary.json``, ``accuracy.svg`` and ``report.html``, and prints the table."""
    config, folder = results.experiment, results.folder
    drawn_table, metric = table(results), config.metric
    write_json(folder.path / "summary.json", summary(results, drawn_table) | results.made)
    note = legend(None if metric is None else metric.name, drawn_table)
    atomic.write_file(folder.path / "table.txt", tables.text(drawn_table) + "\n")
    sections = [page.table(drawn_table, note), *_failures(results)]
    drawn = []
    if metric is not None and any(row.results for row in results.rows):
        drawing = figures.accuracy_against_bytes(_points(results))
        atomic.write_file(folder.path / "accuracy.svg", drawing)
        drawn.append(page.figure(f"{metric.name[:1].upper()}{metric.name[1:]} against size", drawing))
    drawn += parts.curves(results)
    sections += [page.row(*drawn), page.row(*parts.by_seed(results), *parts.layers(results))]
    for row in results.rows:
        drawing = grids.drawing(folder, row.name)
        if row.results and drawing.is_file():  # of a row without results it is that of an earlier run
            sections.append(page.figure(f"{row.name}: values and their grid", drawing.read_text(), caption=CAPTION))
    write_report(config.name, folder, [*sections, *parts.files(results)])
    show(drawn_table, note, results)


def show(shown: tables.Table, note: str, results: Results) -> None:
    """Prints a table, what its columns mean, what failed, and where the rest is."""
    terminal = printed(shown, note)
    for names, error in _by_error(results):
        terminal.print(f"{names} failed: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
    terminal.print(f"{results.folder.path}; {results.minutes:.1f} minutes", highlight=False, soft_wrap=True)


def printed(shown: tables.Table, note: str) -> Console:
    """Prints a table and what its columns mean, and returns the terminal."""
    terminal = console()
    terminal.width = max(terminal.width, tables.width(shown))  # a broken line is better than cells cut short
    terminal.print(tables.rich_table(shown))
    terminal.print(note, style="dim")
    return terminal


def _failures(results: Results) -> list[str]:
    return [page.details(f"{names} failed", error) for names, error in _by_error(results)]


def _by_error(results: Results) -> list[tuple[str, str]]:
    """Names of failed pieces and what they say, once for all that say the same."""
    names_of: dict[str, list[str]] = {}
    for name, error in results.failed.items():
        names_of.setdefault(error, []).append(name)
    return [(", ".join(names), error) for error, names in names_of.items()]


def write_report(name: str, folder: RunFolder, sections: Sequence[str]) -> None:
    """Writes ``report.html``: the sections, then the config and the machine."""
    machine, facts = folder.environment, json.loads((folder.path / "run.json").read_text())
    commit = (
        f"commit {machine['commit'][:12]}{' with changes' if machine['dirty'] else ''}"
        if machine["commit"]
        else "no commit"
    )
    lead = f"{commit} · {machine['device']['cpu']}, {machine['device']['cores']} cores · jax {jax.__version__} · {facts['started']}"
    last = [
        page.details("Config", (folder.path / "config.json").read_text()),
        page.details("Machine and versions", json.dumps(facts, indent=2)),
    ]
    atomic.write_file(folder.path / "report.html", page.page(name, lead, [*sections, *last]))


def summary(results: Results, shown: tables.Table) -> dict[str, Any]:
    """Returns what is kept of a run: the metric of the packed weights by row and seed, all that evals measured, the table.

    Times are left out of the table: they are of the hour, not of the method.
    """
    rows: dict[str, Any] = {}
    metric = results.experiment.metric
    for row in results.rows:
        if not row.results:
            rows[row.name] = {"errors": {str(seed): text for seed, text in row.errors.items()}}
            continue
        values = [round(a, 3) for a in row.values("metric", "execute")]
        rows[row.name] = {"values": values, "mean": round(float(np.mean(values)), 3)} if values else {}
        rows[row.name] |= {} if (half := deviation(values)) is None else {"spread": round(half, 3)}
        rows[row.name] |= {"measured": _measured(row)}
    asked = columns(results.experiment)
    timed = {i + 1 for i, column in enumerate(asked) if column.of[0] == "latency"}
    kept = [[cell for i, cell in enumerate(line) if i not in timed] for line in (shown.columns, *shown.rows)]
    seconds = sum(result[TIMES] for row in results.rows for result in row.results.values())
    return {
        "config": results.experiment.name,
        "command": command(),
        "metric": None if metric is None else metric.name,
        "seeds": list(results.experiment.seeds),
        "baseline": None if results.guess is None else {"name": results.guess[0], "value": round(results.guess[1], 4)},
        "rows": rows,
        "spread": "sample standard deviation over seeds",
        "minutes": round(seconds / 60, 1),
        "table": kept,
    }


def _measured(row: Measured) -> dict[str, Any]:
    """Numbers by their keys, over seeds: the mean, and the spread where there are several seeds."""
    tree: dict[str, Any] = {}
    for keys in sorted({keys for result in row.results.values() for keys in _paths(result)}):
        values = row.values(*keys)
        if keys[0] == TIMES or not values:  # texts stand in the pieces' own results
            continue
        place = tree
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        half = deviation(values)
        place[keys[-1]] = {"mean": round(float(np.mean(values)), 6)} | (
            {} if half is None else {"spread": round(half, 6)}
        )
    return tree


def _paths(result: Any, lead: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(result, dict):
        return [path for key, value in result.items() for path in _paths(value, (*lead, key))]
    return [lead]


def _points(results: Results) -> list[figures.Point]:
    points = []
    for row in results.rows:
        if values := row.values("metric", "execute"):
            size = float(np.mean(row.values("bytes", "file")))
            points.append(
                figures.Point(row.name, size, float(np.mean(values)), deviation(values) or 0.0, row.name == FLOAT)
            )
    return points
