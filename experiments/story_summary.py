"""How an edge story ends: one table, ``summary.json``, ``report.html``. Times are in microseconds throughout."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from experiments import device
from experiments.config import FLOAT
from experiments.run_folder import RunFolder, write_json
from experiments.story import Story
from experiments.summary import Row, write_report
from lowbit.core import atomic
from lowbit.report import page, tables


def table(rows: Sequence[Row], story: Story, guess: tuple[str, float] | None) -> tables.Table:
    """Returns the table: a row per model, mean and sample standard deviation over seeds."""
    columns = ["model", story.metric.name, f"on {story.device}", "differ", "bits/w", "weights", "flash", "RAM"]
    columns += [*(["M4 Minstr"] if story.device == "cortex-m4" else []), "C us", "IREE us"]
    lines = [] if guess is None else [[guess[0], f"{guess[1]:.{story.metric.digits}f}", *["-"] * (len(columns) - 2)]]
    for row in rows:
        is_float = row.name == FLOAT
        line = [row.name, tables.spread(row.values("metric", "execute"), story.metric.digits)]
        line.append(tables.spread(row.values("metric", "device"), story.metric.digits))
        line.append("-" if is_float else f"{100 * float(np.mean(row.values('difference', 'share'))):.3g} %")
        line.append("32" if is_float else f"{np.mean(row.values('bits_per_weight')):.2f}")
        line.append(tables.size(float(np.mean(row.values("bytes", "weights")))))
        line += [_mean(row, "flash_bytes"), _mean(row, "ram_bytes")]
        if story.device == "cortex-m4":
            count = row.latency.get("instructions")
            line.append("-" if count is None else f"{count / 1e6:.2f}")
        line += [f"{row.latency[where]:.0f}" if where in row.latency else "-" for where in ("c", "iree")]
        lines.append(line)
    return tables.Table(f"{story.name}, {len(story.seeds)} seed(s)", columns, lines)


def _mean(row: Row, what: str) -> str:
    found = row.values("device", what)
    return tables.size(float(np.mean(found))) if found else "-"


def notes(story: Story, *, tested: int) -> str:
    """Returns what the columns mean."""
    counted = (
        "M4 Minstr: million instructions a sample, counted by the emulator. " if story.device == "cortex-m4" else ""
    )
    return (
        f"{story.metric.name}: on the whole test set, packed weights read back from the file. on {story.device}: the "
        f"compiled program on {tested:,} test samples. differ: outputs that are not those of lowbit.execute, to the last "
        "bit. bits/w, weights: stored, scales included. flash: code and constants of the compiled model; RAM: its static "
        f"memory and deepest stack, without input and output. {counted}us: microseconds a sample on one core of this "
        "machine, median, through the C compiler and through IREE: an emulated device has no time of its own."
    )


def finish(
    story: Story,
    folder: RunFolder,
    terminal: Console,
    rows: Sequence[Row],
    guess: tuple[str, float] | None,
    *,
    tested: int,
    minutes: float,
) -> None:
    """Logs, draws and prints what a story found.

    Args:
        story: the config.
        folder: the run's folder.
        terminal: where the table goes.
        rows: one per model, float first.
        guess: name and metric of the forecast or guess without a model.
        tested: samples that the device ran.
        minutes: since the start.
    """
    made = {key: folder.environment[key] for key in ("commit", "dirty", "versions", "device")}
    write_json(folder.path / "summary.json", _summary(story, rows, guess, tested=tested, minutes=minutes) | made)
    found, note = table(rows, story, guess), notes(story, tested=tested)
    atomic.write(folder.path / "table.txt", tables.text(found) + "\n")
    write_report(story.name, folder, [page.table(found, note)])
    terminal.width = max(terminal.width, tables.width(found))  # a broken line is better than cells cut short
    terminal.print(tables.rich_table(found))
    terminal.print(note, style="dim")
    terminal.print(f"{folder.path}; {minutes:.1f} minutes", highlight=False, soft_wrap=True)


def _summary(
    story: Story, rows: Sequence[Row], guess: tuple[str, float] | None, *, tested: int, minutes: float
) -> dict[str, Any]:
    """What is kept of a story."""
    found: dict[str, Any] = {}
    for row in rows:
        line: dict[str, Any] = {where: _spread(row.values("metric", where)) for where in ("execute", "device")}
        line["differing_share"] = _spread(row.values("difference", "share"))
        line["bits_per_weight"] = _spread(row.values("bits_per_weight"))
        line["weight_bytes"] = _spread(row.values("bytes", "weights"))
        kinds = sorted({name for result in row.results for name in result.get("device", {})})
        line |= {name: _spread(row.values("device", name)) for name in kinds}
        line |= {
            f"{where}_microseconds": round(row.latency[where], 1) for where in ("c", "iree") if where in row.latency
        }
        line["instructions"] = row.latency.get("instructions")
        found[row.name] = {name: value for name, value in line.items() if value is not None}
    return {
        "config": story.name,
        "command": f"lowbit run experiments/configs/{story.name}.py",
        "metric": story.metric.name,
        "target": story.device,
        "compiler": device.version(story.device),
        "device_samples": tested,
        "seeds": list(story.seeds),
        "rows": found,
        "baseline": None if guess is None else {"name": guess[0], "value": round(guess[1], 4)},
        "spread": "sample standard deviation over seeds",
        "minutes": round(minutes, 1),
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = {"mean": round(float(np.mean(values)), 4)}
    return found | ({"spread": round(float(np.std(values, ddof=1)), 4)} if len(values) > 1 else {})
