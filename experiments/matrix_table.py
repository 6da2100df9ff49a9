"""The matrix as a table: for the terminal, a page, and the README, whose table is written by this and by nothing else.

``python -m experiments.matrix_table README.md`` renders ``experiments/results/matrix.json`` between the marks in that file.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowbit.core import atomic
from lowbit.export.runners import runners
from lowbit.report import page, tables
from lowbit.run.environment import command
from lowbit.run.evals.verify import tools
from lowbit.run.experiment import FLOAT
from lowbit.run.folder import RunFolder, write_json
from lowbit.run.report import printed, write_report
from lowbit.run.results import Results

RESULT = Path(__file__).parent / "results" / "matrix.json"
MARKS = "<!-- matrix: written by python -m experiments.matrix_table README.md -->", "<!-- end of matrix -->"

NOTE = (
    "Every plan that a target takes is exported, run there, and compared with lowbit.execute: exact, to the last bit of every "
    "output; or the largest difference in steps of the output's grid and the share of outputs that differ; or, where outputs "
    "are floats without a grid, the largest difference. by rounding: what another rounding of the same integers, through "
    "lowbit.execute, moves the same outputs by. -: refused when exporting. Targets with the same column share one."
)


def cell(row: Mapping[str, Any]) -> str:
    """Returns what a target did, in a few letters."""
    status = row["status"]
    if status == "refused":
        return "-"
    if status == "reported":
        counts = [row.get("measured", {}).get(f"{where}_operators", 0.0) for where in ("npu", "cpu")]
        return f"{100 * counts[0] / sum(counts):.0f} % on NPU" if sum(counts) else status
    if status not in ("close", "differs"):
        return status
    said = f"{row['difference']:.1g}"
    if row["unit"] == "steps":
        said = f"{row['difference']:g} step{'' if row['difference'] == 1 else 's'}, {100 * row['share']:.2g} %"
        said += f" (by rounding: {row['rounding']:g})" if "rounding" in row else ""
    return said if status == "close" else f"differs: {said}"


def grouped(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns the targets, those together that did the same with every plan, in the order of the table of targets."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for target in found["targets"]:
        column = tuple(cell(plan["targets"][target]) for _, plan in _plans(found))
        groups.setdefault(column, []).append(target)
    return [tuple(names) for names in groups.values()]


def _plans(found: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return [(model, plan) for model in found["models"] for plan in model["plans"]]


def compact(found: Mapping[str, Any]) -> tables.Table:
    """Returns a row per plan and a column per group of targets."""
    groups = grouped(found)
    rows = []
    for model, plan in _plans(found):
        right, before = (f"{each['metric']:.{model['digits']}f}" for each in (plan, model["float"]))
        cells = [cell(plan["targets"][group[0]]) for group in groups]
        rows.append([model["title"], plan["name"], f"{right} ({before})", f"{plan['bits_per_weight']:.2f}", *cells])
    columns = ["model", "plan", "right % (float)", "bits/w", *(", ".join(group) for group in groups)]
    return tables.Table("models, plans, targets", columns, rows)


def whole(found: Mapping[str, Any]) -> tables.Table:
    """Returns a row per plan and target, with sizes and reasons."""
    rows = []
    for model, plan in _plans(found):
        for target, row in plan["targets"].items():
            size = tables.size(row["bytes"]) if "bytes" in row else "-"
            bits = f"{row['bits_per_weight']:.2f}" if "bits_per_weight" in row else "-"
            rows.append([f"{model['title']} {plan['name']}", target, cell(row), size, bits, row.get("detail", "")])
    return tables.Table("all of it", ["model and plan", "target", "result", "compiled", "bits/w", "why"], rows)


def markdown(found: Mapping[str, Any]) -> str:
    """Returns the compact table for the README, and what its cells mean."""
    table = compact(found)
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    before = ""
    for row in table.rows:
        lines.append("| " + " | ".join(["" if row[0] == before else row[0], *row[1:]]) + " |")
        before = row[0]
    return "\n".join([*lines, "", NOTE]) + "\n"


def block(text: str, marks: tuple[str, str] = MARKS) -> tuple[int, int]:
    """Returns where a table of a document begins and ends.

    Raises:
        ValueError: if the marks are not there, once each.
    """
    if any(text.count(mark) != 1 for mark in marks):
        raise ValueError(f"the document must hold {marks[0]!r} and {marks[1]!r} once each")
    return text.index(marks[0]) + len(marks[0]) + 1, text.index(marks[1])


def write_block(documents: Sequence[str], content: str, marks: tuple[str, str] = MARKS) -> None:
    """Puts a text between the marks of every document."""
    for name in documents:
        text = Path(name).read_text()
        start, end = block(text, marks)
        atomic.write_file(name, text[:start] + content + text[end:])


def report(titles: Mapping[str, str], results: Sequence[Results], folder: RunFolder) -> None:
    """Writes ``summary.json``, ``table.txt`` and ``report.html``, and prints the compact table: the report of the suite.

    Args:
        titles: of the experiments, by name.
        results: of all experiments, one seed each.
        folder: of the suite.
    """
    models = [_model(titles.get(each.experiment.name, each.experiment.name), each) for each in results]
    targets = list(dict.fromkeys(name for _, plan in _plans({"models": models}) for name in plan["targets"]))
    found = {
        "config": "matrix",
        "command": command(),
        "seeds": sorted({seed for each in results for seed in each.experiment.seeds}),
        "targets": targets,
        "tools": tools(targets),
        "models": models,
        "minutes": round(sum(each.minutes for each in results), 1),
    } | results[0].made
    write_json(folder.path / "summary.json", found)
    table, every = compact(found), whole(found)
    atomic.write_file(folder.path / "table.txt", f"{tables.text(table)}\n\n{tables.text(every)}\n")
    write_report("matrix", folder, [page.table(table, NOTE), page.table(every)])
    printed(table, NOTE).print(str(folder.path), highlight=False, soft_wrap=True)


def _model(title: str, results: Results) -> dict[str, Any]:
    """What was found of one network: its float model, and its plans that did not fail.

    Raises:
        ValueError: without the float model.
    """
    made = results.experiment
    methods, seed = {method.name: method for method in made.methods}, made.seeds[0]
    found = {row.name: row.results[seed] for row in results.rows if seed in row.results}
    if FLOAT not in found:
        raise ValueError(
            f"{made.name}: the table needs the float row, which failed or was left out: --only float does it"
        )
    plans = [
        {
            "name": name,
            **{key: result[key] for key in ("bits_per_weight", "rules")},
            "targets": {target: result["targets"][target] for target in runners() if target in result["targets"]},
            "metric": result["metric"]["execute"],
            "is_integer": methods[name].integer,
            "rounding": methods[name].rounding if methods[name].integer else None,
        }
        for name, result in found.items()
        if name in methods
    ]
    before = found[FLOAT]
    assert made.metric is not None
    return {
        "name": made.name,
        "title": title,
        "data": results.data,
        "metric": made.metric.name,
        "digits": made.metric.digits,
        "float": {"metric": before["metric"]["execute"], "weights": before["bytes"]["weights"] // 4},
        "plans": plans,
    }


def main(arguments: Sequence[str]) -> None:
    """Writes the table into the documents named."""
    write_block(arguments, markdown(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main(sys.argv[1:])
