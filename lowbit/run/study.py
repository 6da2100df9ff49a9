"""How a study ends: methods beside settings, mean and 95 % interval over seeds, an order, one plot, one JSON file.

A row is called ``<method>_<setting>``; the seeds of all rows share their float checkpoints and test signals, so two
methods are compared seed by seed.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lowbit.core import atomic
from lowbit.report import tables

from .environment import command
from .experiment import FLOAT
from .folder import TIMES, write_json
from .report import show
from .results import Measured, Results

LABELS = {
    "ptq": "RTN, not trained", "rtn": "STE, absmax", "dorefa": "DoReFa", "pact": "PACT + DoReFa", "lsq": "LSQ",
    "lsq_plus": "LSQ+", "ewgs": "EWGS", "statsq": "StatsQ + LSQ", "seq": "SEQ + LSQ", "twn": "TWN + LSQ",
    "bitnet": "BitNet", "xnor": "XNOR + LSQ",
}  # fmt: skip
"""How methods are written; others as they are called."""


class Interval(NamedTuple):
    """A mean and half the width of its interval; the half is None for one value."""

    mean: float
    half: float | None

    @property
    def text(self) -> str:
        """With two digits."""
        return f"{self.mean:.2f}" if self.half is None else f"{self.mean:.2f} ± {self.half:.2f}"

    @property
    def is_above_zero(self) -> bool:
        """Whether all of it is."""
        return self.half is not None and self.mean - self.half > 0


def interval(values: Sequence[float]) -> Interval:
    """Returns the mean and its two-sided 95 % interval by Student's t with ``n - 1`` degrees of freedom.

    Example:
        >>> interval([1.0, 2.0, 3.0, 4.0, 5.0]).text
        '3.00 ± 1.96'
    """
    from scipy.stats import t  # jax depends on scipy

    count = len(values)
    if count < 2:
        return Interval(float(np.mean(values)), None)
    half = t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count)
    return Interval(float(np.mean(values)), float(half))


def grid(rows: Sequence[Measured]) -> dict[str, dict[str, list[float]]]:
    """Returns the metric, one value per seed, by setting and method; both in the order of the rows."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.name != FLOAT:
            method, _, setting = row.name.rpartition("_")
            values.setdefault(setting, {})[method] = metric_of(row)
    return values


def metric_of(row: Measured) -> list[float]:
    """Returns the metric of the packed weights, one value per seed."""
    return row.values("metric", "execute")


def order(values: Mapping[str, Sequence[float]]) -> str:
    """Returns the methods from best to worst; ``>`` where the difference to the next is above zero, else ``~``.

    The difference is taken seed by seed; its 95 % interval must lie above zero.

    Example:
        >>> order({"a": [1.0, 2.0, 3.0], "b": [5.0, 6.1, 7.0], "c": [1.1, 1.9, 3.1]})
        'b > c ~ a'
    """
    names = sorted(values, key=lambda name: -float(np.mean(values[name])))
    text = names[0]
    for better, worse in itertools.pairwise(names):
        gap = interval([a - b for a, b in zip(values[better], values[worse], strict=True)])
        text += f" {'>' if gap.is_above_zero else '~'} {worse}"
    return text


def table(rows: Sequence[Measured], title: str) -> tables.Table:
    """Returns a row per method and a column per setting."""
    by_setting = grid(rows)
    names = list(dict.fromkeys(name for values in by_setting.values() for name in values))
    float_row = next(row for row in rows if row.name == FLOAT)
    lines = [[FLOAT, *[interval(metric_of(float_row)).text] * len(by_setting)]]
    for name in names:
        cells = [interval(values[name]).text if name in values else "-" for values in by_setting.values()]
        lines.append([LABELS.get(name, name), *cells])
    return tables.Table(title, ["method", *by_setting], lines)


def record(results: Results) -> dict[str, Any]:
    """Returns what is kept of a study: every value, the intervals, the orders, and what they depend on."""
    rows, config = results.rows, results.experiment
    assert config.metric is not None
    seconds = sum(result[TIMES] for row in rows for result in row.results.values())
    lines = {row.name: {"values": [round(x, 2) for x in metric_of(row)], **_rounded(metric_of(row))} for row in rows}
    orders = {setting: order(methods) for setting, methods in grid(rows).items()}
    return {
        "config": config.name,
        "command": command(),
        "metric": config.metric.name,
        "seeds": list(config.seeds),
        "minutes": round(seconds / 60, 1),
        "interval": "95 %, Student's t over seeds",
        "rows": lines,
        "order": orders,
        **results.made,
    }


def _rounded(given: Sequence[float]) -> dict[str, float | None]:
    estimate = interval(given)
    return {"mean": round(estimate.mean, 3), "half": None if estimate.half is None else round(estimate.half, 3)}


def compared(results: Results) -> None:
    """Writes ``table.txt``, ``study.json`` and ``study.png``, and prints the table: the report of a study.

    Raises:
        ValueError: if float, or every other row, has not all seeds, or the experiment has no metric.
    """
    config, folder = results.experiment, results.folder
    if config.metric is None:
        raise ValueError(f"{config.name}: a study compares methods by a metric, and there is none")
    rows = [row for row in results.rows if len(row.results) == len(config.seeds)]  # the order pairs the seeds
    if len(rows) < 2 or rows[0].name != FLOAT:
        raise ValueError(
            f"{config.name}: a study compares methods beside float, by all seeds; there are {len(rows)} whole rows"
        )
    drawn_table = table(
        rows, f"{config.name}: {config.metric.name}, mean ± 95 % interval of {len(config.seeds)} seed(s)"
    )
    orders = [f"{setting:<8} {order(values)}" for setting, values in grid(rows).items()]
    atomic.write_file(folder.path / "table.txt", "\n".join([tables.text(drawn_table), "", *orders, ""]))
    write_json(folder.path / "study.json", record(dataclasses.replace(results, rows=tuple(rows))))
    plot(rows, folder.path / "study.png", config.metric.name)
    said = "a > b: better by more than the 95 % interval of the paired difference; a ~ b: not"
    show(drawn_table, "\n".join([*orders, said]), results)


def plot(rows: Sequence[Measured], path: Path, metric: str) -> None:
    """Writes a PNG: a panel per setting, a line per method with its seeds, mean and interval; float is the dashed line.

    What is not trained may lie far below a panel: then its number stands at the edge.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_setting = grid(rows)
    names = list(dict.fromkeys(name for values in by_setting.values() for name in values))
    level = float(np.mean(metric_of(next(row for row in rows if row.name == FLOAT))))
    figure = Figure(figsize=(2.0 + 2.1 * len(by_setting), 1.2 + 0.3 * len(names)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(by_setting), sharey=True, squeeze=False)[0]
    shown: dict[str, Any] = {}
    for axes, (setting, values) in zip(panels, by_setting.items(), strict=True):
        shown["float"] = axes.axvline(level, color=_GREY, ls=(0, (4, 3)), lw=1.0, zorder=0)
        left, right = _ends(values, level)
        axes.set_xlim(left, right)
        for y, name in enumerate(names):
            if name in values:
                shown |= _line(axes, y, values[name], left, is_trained=name != "ptq")
            else:
                _say(axes, 0.5 * (left + right), y, "not defined", _GREY, "center")
        axes.set_title(setting, size=9, loc="left")
        axes.tick_params(labelsize=8, left=False)
        axes.grid(axis="y", color="#e9ebee", lw=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    panels[0].set_yticks(range(len(names)), [LABELS.get(name, name) for name in names])
    panels[0].invert_yaxis()
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=len(shown), frameon=False, fontsize=8)
    figure.supxlabel(f"{metric}  (every panel has its own axis)", size=9)
    with atomic.replacing(path) as part:
        figure.savefig(part, format="png", metadata={"Software": None})


_BLUE, _ORANGE, _GREY = "#2b5c9e", "#e07b29", "#8a9099"


def _ends(values: Mapping[str, Sequence[float]], level: float) -> tuple[float, float]:
    """The ends of a panel: around float and what was trained, with its intervals, and what else lies among them."""
    reach = {name: _reach(numbers) for name, numbers in values.items()}
    trained = [reach[name] for name in values if name != "ptq"] or list(reach.values())
    low = min(level, *(low for low, _ in trained))
    inside = [reach[name] for name, numbers in values.items() if np.mean(numbers) >= low]
    low, high = min(low, *(low for low, _ in inside)), max(level, *(high for _, high in inside))
    margin = 0.08 * max(high - low, 1.0)
    return low - margin, high + margin


def _reach(values: Sequence[float]) -> tuple[float, float]:
    """The ends of what is drawn of one method."""
    mean, half = interval(values)
    return min(*values, mean - (half or 0.0)), max(*values, mean + (half or 0.0))


def _line(axes: Any, y: int, values: Sequence[float], left: float, *, is_trained: bool) -> dict[str, Any]:
    """Draws one method and returns the legend's entries by their text."""
    middle = interval(values)
    colour = _BLUE if is_trained else _ORANGE
    if middle.mean < left:
        _say(axes, left, y, f"\N{BLACK LEFT-POINTING TRIANGLE} {middle.mean:.0f} %", colour, "left")
        return {}
    (seeds,) = axes.plot(values, [y] * len(values), ls="", marker="o", ms=4, color=colour, alpha=0.35, mew=0)
    bar = axes.errorbar(middle.mean, y, xerr=middle.half or 0.0, fmt="o", ms=5, capsize=3, lw=1.4, color=colour)
    what = "trained" if is_trained else "not trained"
    return {f"{what}: mean, 95 % interval": bar, f"{what}: one seed": seeds}


def _say(axes: Any, x: float, y: float, text: str, colour: str, side: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    axes.text(x, y, text, color=colour, size=7.5, ha=side, va="center", bbox=box)
