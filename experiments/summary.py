"""How a run ends: one table, a line per method in ``metrics.jsonl``, ``report.html``."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from experiments.config import FLOAT, Config
from experiments.progress import Screen
from experiments.run_folder import RunFolder, write_json
from lowbit.core import atomic
from lowbit.report import figures, page, panels, tables


class Row(NamedTuple):
    """One method: its results, one per seed, and its latencies."""

    name: str
    results: list[dict[str, Any]]
    latency: dict[str, Any]

    def values(self, *keys: str) -> list[float]:
        """Returns one number per seed, or nothing where it was not measured."""
        found = []
        for result in self.results:
            value: Any = result
            for key in keys:
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                found.append(float(value))
        return found


Finish = Callable[..., None]
"""How a run ends, with the arguments of `finish`."""


def table(rows: Sequence[Row], config: Config) -> tables.Table:
    """Returns the table of the run: a row per method, accuracy as mean and sample standard deviation over seeds."""
    base = {row.name: row for row in rows}[FLOAT]
    columns = ["method", "accuracy %", "- float", "bits/w", "file"]
    columns += ["export", "vmfb", "IREE acc. %"] if config.edge_images else []
    columns += ["sim-exec"] + (["exec-IREE"] if config.edge_images else [])
    columns += [f"XLA ms b{config.latency_batch}"] if config.latency_rounds else []
    columns += [f"IREE ms b{config.edge_batch}"] if config.latency_rounds and config.edge_images else []
    lines = []
    for row in rows:
        accuracy = row.values("accuracy", "execute")
        gap = 100 * (float(np.mean(accuracy)) - float(np.mean(base.values("accuracy", "execute"))))
        line = [row.name, tables.spread([100 * a for a in accuracy]), "" if row is base else f"{gap:+.2f}"]
        line += [f"{np.mean(row.values('bits_per_weight')):.2f}", _size(row, "file")]
        if config.edge_images:
            line += [
                _size(row, "export"),
                _size(row, "vmfb"),
                tables.spread([100 * a for a in row.values("accuracy", "iree")]),
            ]
        line += [_worst(row, "execute")] + ([_worst(row, "iree")] if config.edge_images else [])
        for where in ("xla", "iree"):
            if where in row.latency:
                ratio = base.latency[where]["median"] / row.latency[where]["median"]
                line.append(f"{row.latency[where]['median']:.3f} ({ratio:.2f}x)")
        lines.append(line)
    return tables.Table(f"{config.name}, {len(config.seeds)} seed(s)", columns, lines)


NOTES = (
    "accuracy: packed weights read back from the file, mean ± standard deviation over seeds. bits/w: stored bits per "
    "weight, scales included. file: the packed checkpoint; export: the StableHLO artifact, deflated; vmfb: the module "
    "IREE compiled. sim-exec, exec-IREE: largest difference of an output over all seeds. ms bN: median time of a call "
    "with N images; (2x) is twice as fast as float in the same runtime."
)


def _size(row: Row, what: str) -> str:
    return tables.size(float(np.mean(row.values("bytes", what))))


def _worst(row: Row, what: str) -> str:
    worst = max(row.values("difference", what, "max"))
    return "0" if worst == 0 else f"{worst:.2g}"


def finish(
    config: Config,
    folder: RunFolder,
    terminal: Console,
    rows: Sequence[Row],
    trained: Mapping[str, Callable[[], Any]],
    batches: Sequence[np.ndarray],
    *,
    screen: Screen,
    minutes: float,
) -> None:
    """Logs, draws and prints what a run found.

    Args:
        config: the config.
        folder: the run's folder.
        terminal: where the table goes.
        rows: one per method, float first.
        trained: by method, what gives its model of the first seed: ``fn, plan, params, state, qstate``.
        batches: images whose activations are drawn.
        screen: shows the progress of drawing.
        minutes: since the start.
    """
    made = {key: folder.environment[key] for key in ("commit", "dirty", "versions", "device")}
    for row in rows:
        accuracy = row.values("accuracy", "execute")
        line = {"config": config.name, "seeds": list(config.seeds), "mean": float(np.mean(accuracy))}
        line |= {"spread": _deviation(accuracy), **made}
        folder.log(row.name, "summary", **line, seconds=round(60 * minutes, 1), latency=row.latency)
    write_json(folder.path / "summary.json", _summary(config, rows, minutes) | made)
    found = table(rows, config)
    atomic.write(folder.path / "table.txt", tables.text(found) + "\n")
    size = figures.accuracy_against_bytes(_points(rows))
    atomic.write(folder.path / "accuracy.svg", size)
    sections = [page.table(found, NOTES), page.figure("Accuracy against size", size)]
    bar = screen.start("report", len(trained))
    for done, (name, get) in enumerate(trained.items()):
        model = get()
        drawn = panels.panels(
            model.fn, model.plan, model.params, model.qstate, [(model.state, x) for x in batches[:2]], limit=6
        )
        sections.append(page.figure(f"{name}: values and their grid", figures.grids(drawn), caption=CAPTION))
        sections.append(page.details(f"{name}: the plan", str(model.plan)))
        bar(done + 1)
    write_report(config.name, folder, sections)
    wide = max(terminal.width, tables.width(found))  # a line that the terminal breaks is better than cells cut short
    terminal.width = wide
    terminal.print(tables.rich_table(found))
    terminal.print(NOTES, style="dim")
    terminal.print(f"{folder.path}/report.html has the plots; {minutes:.1f} minutes", highlight=False, soft_wrap=True)


def write_report(name: str, folder: RunFolder, sections: Sequence[str]) -> None:
    """Writes ``report.html``: the sections, then the config and the machine."""
    made, facts = folder.environment, json.loads((folder.path / "run.json").read_text())
    commit = (
        f"commit {made['commit'][:12]}{' with changes' if made['dirty'] else ''}" if made["commit"] else "no commit"
    )
    lead = f"{commit} · {made['device']['cpu']}, {made['device']['cores']} cores · jax {jax.__version__} · {facts['started']}"
    last = [
        page.details("Config", (folder.path / "config.json").read_text()),
        page.details("Machine and versions", json.dumps(facts, indent=2)),
    ]
    atomic.write(folder.path / "report.html", page.page(name, lead, [*sections, *last]))


CAPTION = (
    "Orange lines are the numbers the format can hold; outside them values are clipped. Weights are shown in steps of "
    "their own scale, so channels with different scales share one grid. The operations with most rounding noise."
)


def _summary(config: Config, rows: Sequence[Row], minutes: float) -> dict[str, Any]:
    """What is kept of a run: accuracy of the packed weights in percent, by row and seed, and the table but for its times."""
    kept = table([row._replace(latency={}) for row in rows], dataclasses.replace(config, latency_rounds=0))
    found = {}
    for row in rows:
        percent = [round(100 * a, 3) for a in row.values("accuracy", "execute")]
        found[row.name] = {"accuracy": percent, "mean": round(float(np.mean(percent)), 3)}
        spread = _deviation(percent)
        found[row.name] |= {} if spread is None else {"spread": round(spread, 3)}
    return {
        "config": config.name,
        "command": f"lowbit run experiments/configs/{config.name}.py",
        "seeds": list(config.seeds),
        "rows": found,
        "spread": "sample standard deviation over seeds",
        "minutes": round(minutes, 1),
        "table": [list(kept.columns), *map(list, kept.rows)],
    }


def _deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation, or None of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _points(rows: Sequence[Row]) -> list[figures.Point]:
    points = []
    for row in rows:
        accuracy = [100 * a for a in row.values("accuracy", "execute")]
        size = float(np.mean(row.values("bytes", "file")))
        points.append(
            figures.Point(row.name, size, float(np.mean(accuracy)), _deviation(accuracy) or 0.0, row.name == FLOAT)
        )
    return points
