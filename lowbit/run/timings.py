"""A report of times: a row for every network and batch, float beside every method and every peer.

What `lowbit.run.latency` or `lowbit.run.peers` measured, of one experiment or of a suite. ``times.json`` has all of it: least and
median milliseconds, ratios, distances, what ran every operation, the load, the machine.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lowbit.core import atomic
from lowbit.report import page, tables

from . import report
from .environment import command
from .evals.latency import RUNTIME
from .experiment import FLOAT
from .folder import RunFolder, read_json, write_json
from .measure import instruction_set
from .results import Results


def times(titles: Mapping[str, str] | None = None) -> Callable[[Sequence[Results], RunFolder], None]:
    """Returns the report of a suite: prints the table, writes ``times.json``, ``table.txt`` and ``report.html``.

    Args:
        titles: of experiments, by name, where the name is not one to be read.
    """
    return functools.partial(_suite, dict(titles or {}))


def _suite(titles: Mapping[str, str], results: Sequence[Results], folder: RunFolder) -> None:
    asked = read_json(folder.path / "config.json") or {}
    timed = [line for each in results for line in lines(each, titles)]
    _written(asked.get("name", "times"), timed, record(timed, folder, results), folder)


def timed(results: Results) -> None:
    """The report of one experiment: what `lowbit.run.report.standard` writes, and ``times.json``."""
    report.standard(results)
    write_json(results.folder.path / "times.json", record(lines(results), results.folder, [results]))


def lines(results: Results, titles: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Returns a line for every batch that was measured, by growing batch."""
    name = results.experiment.name
    seed = results.experiment.seeds[0]
    rows = {row.name: row.results[seed] for row in results.rows if "latency" in row.results.get(seed, {})}
    batches = {key for result in rows.values() for values in result["latency"].values() for key in values}
    timed = []
    for batch in sorted(batches, key=lambda key: int(key[1:])):
        measured = {row: _of_batch(result, batch) for row, result in rows.items()}
        times = {key: value for row, result in measured.items() for key, value in _times(row, result).items()}
        line: dict[str, Any] = {"network": (titles or {}).get(name, name), "batch": int(batch[1:])}
        line["load_average"] = max(result["latency"][RUNTIME]["load_average"] for result in measured.values())
        line["implementations"] = {
            row: sorted(set(result["operations"].values())) for row, result in rows.items() if "operations" in result
        }
        line["times"] = {
            key: {"min_ms": value["min"], "median_ms": value["median"], "rounds": value["rounds"]}
            for key, value in times.items()
        }
        line["over_float"] = {key: value["over_float"] for key, value in times.items() if "over_float" in value}
        for key in ("peer_takes", "distance"):
            if numbers := {row: values[key] for row, values in measured.items() if values.get(key)}:
                line[key] = numbers
        timed.append(line)
    return timed


def _of_batch(result: Mapping[str, Any], batch: str) -> dict[str, Any]:
    """Numbers of one batch: by runtime, of every kind."""
    kinds = ("latency", "peer_takes", "distance")
    return {
        kind: {runtime: values[batch] for runtime, values in result[kind].items() if batch in values}
        for kind in kinds
        if kind in result
    }


def _times(row: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Times of a method by the name of their line: of lowbit the method's, of a peer with its name before."""
    return {row if runtime == RUNTIME else f"{runtime} {row}": value for runtime, value in result["latency"].items()}


def record(timed: Sequence[Mapping[str, Any]], folder: RunFolder, suite: Sequence[Results]) -> dict[str, Any]:
    """Returns what ``times.json`` holds: the lines, the machine, and what is not there."""
    kept = {key: folder.environment[key] for key in ("commit", "dirty", "versions", "device")}
    results = [result for each in suite for row in each.rows for result in row.results.values()]
    peers = {name: version for result in results for name, version in result.get("peers", {}).items()}
    about = {"isa": instruction_set(), "peers": peers, "absent": folder.absent}
    about["date"] = (read_json(folder.path / "run.json") or {}).get("started")
    return {"command": command(), **kept, **about, "rows": list(timed)}


def table(timed: Sequence[Mapping[str, Any]], title: str) -> tables.Table:
    """Returns the table: medians in milliseconds, and how many times float's median each is."""
    names = list(dict.fromkeys(name for line in timed for name in line["times"]))
    cells = []
    for line in timed:
        medians = {name: value["median_ms"] for name, value in line["times"].items()}
        base = medians.get(FLOAT)
        row = [str(line["network"]), str(line["batch"])]
        for name in names:
            if name not in medians:
                row.append("-")
            elif name == FLOAT or base is None:
                row.append(f"{medians[name]:.3g}")
            else:
                row.append(f"{medians[name]:.3g} ({medians[name] / base:.2f})")
        cells.append(row)
    return tables.Table(title, ["network", "batch", *names], cells)


NOTE = "Medians in milliseconds; in brackets, in parts of float's. times.json has minima, ratios of rounds, and what ran where."


def _written(name: str, timed: Sequence[Mapping[str, Any]], kept: Mapping[str, Any], folder: RunFolder) -> None:
    drawn_table = table(timed, name)
    write_json(folder.path / "times.json", kept)
    atomic.write_file(folder.path / "table.txt", tables.text(drawn_table) + "\n")
    absent = [page.details(f"{each} is left out", why) for each, why in folder.absent.items()]
    report.write_report(name, folder, [page.table(drawn_table, NOTE), *absent])
    terminal = report.printed(drawn_table, NOTE)
    for each, why in folder.absent.items():
        terminal.print(f"{each} is left out: {why}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    terminal.print(str(folder.path), highlight=False, soft_wrap=True)
