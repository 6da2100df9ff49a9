"""Plots as SVG text. Arrays and names in, no model, no run."""

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowbit.observe.diagnose import Diagnosis

from .panels import Panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, INK = "#2b5c9e", "#e07b29", "#8a9099", "#1c1e21"
MANY_LEVELS = 40
"""A grid with more levels than this is drawn as its two ends: single lines would cover the histogram."""
_STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "svg.fonttype": "none",
    "svg.hashsalt": "lowbit",
    "figure.constrained_layout.use": True,
}


def diagnosis(found: Diagnosis) -> str:
    """Returns signal to noise of every operation as SVG: its weight and its result, alone and accumulated.

    Raises:
        ValueError: if there is no operation.
        ImportError: if matplotlib is not installed.
    """
    if not found.findings:
        raise ValueError("diagnosis needs an operation: found.findings is empty")
    places = range(len(found.findings))
    series = (
        ("weight", [f.weight for f in found.findings], GREY, "s"),
        ("result, alone", [f.output for f in found.findings], BLUE, "o"),
        ("result, all before quantized", [f.output_accumulated for f in found.findings], ORANGE, "o"),
    )
    with _pyplot() as plt:
        figure, axes = plt.subplots(figsize=(7.4, 1.2 + 0.22 * len(found.findings)))
        for name, values, colour, mark in series:
            shown = [v if math.isfinite(v) else math.nan for v in values]
            axes.plot(shown, list(places), mark, color=colour, label=name, markersize=4)
        axes.set_yticks(list(places), [f.path for f in found.findings])
        axes.invert_yaxis()
        axes.set_xlabel("signal to noise, dB")
        axes.legend(frameon=False)
        return _svg(figure)


class Point(NamedTuple):
    """One method: its size in bytes, its accuracy and the spread of it in percent."""

    name: str
    size: float
    accuracy: float
    spread: float = 0.0
    is_baseline: bool = False


def accuracy_against_bytes(points: Sequence[Point]) -> str:
    """Returns accuracy over size (logarithmic) as SVG: a named mark and an error bar per method.

    Raises:
        ValueError: if there is no point, or a size is not positive.
        ImportError: if matplotlib is not installed.
    """
    if not points or min(p.size for p in points) <= 0:
        raise ValueError(f"accuracy_against_bytes needs points with positive sizes, got {[p.size for p in points]}")
    with _pyplot() as plt:
        figure, axes = plt.subplots(figsize=(5.4, 3.5))
        axes.set_xscale("log")
        for point in points:
            colour = GREY if point.is_baseline else BLUE
            axes.errorbar(
                point.size, point.accuracy, point.spread, fmt="o", color=colour, capsize=3, markersize=6, lw=1.2
            )
        low, high = min(p.size for p in points), max(p.size for p in points)
        axes.set_xlim(low / 1.35, high * 1.35)
        axes.margins(y=0.12)
        for point in points:
            if point.is_baseline:
                axes.axhline(point.accuracy, color=GREY, lw=0.8, ls=(0, (4, 4)), zorder=0)
        axes.set(xlabel="size of the packed file, kB (logarithmic)", ylabel="test accuracy, %")
        ticks = _log_ticks(low / 1.35, high * 1.35)
        axes.set_xticks(ticks, [f"{t / 1e3:g}" for t in ticks])
        axes.minorticks_off()
        axes.grid(axis="y", color="#e9ebee", lw=0.8)
        axes.set_axisbelow(True)
        _label(figure, axes, points)
        return _svg(figure)


class Curve(NamedTuple):
    """One training: its name, and the loss and the metric after every epoch; NaN where one was not measured."""

    name: str
    losses: Sequence[float]
    metrics: Sequence[float]


def learning_curves(curves: Sequence[Curve], metric: str) -> str:
    """Returns loss (logarithmic) and metric over epochs as SVG; curves of one name have one colour.

    Raises:
        ValueError: if there is no curve.
        ImportError: if matplotlib is not installed.
    """
    if not curves:
        raise ValueError("learning_curves needs at least one curve")
    names = list(dict.fromkeys(curve.name for curve in curves))
    with _pyplot() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(6.6, 3.5))
        tab20 = plt.get_cmap("tab20").colors
        colours = [*tab20[::2], *tab20[1::2]]  # pale ones last: a thin line of a strong colour looks like one
        for curve in curves:
            i = names.index(curve.name)
            is_first = next(each for each in curves if each.name == curve.name) is curve
            style = {"color": colours[i % 20], "lw": 1.4 if is_first else 0.7, "marker": "o", "markersize": 2.5}
            epochs = range(1, len(curve.losses) + 1)
            left.plot(epochs, curve.losses, label=curve.name if is_first else None, **style)
            right.plot(epochs, curve.metrics, **style)
        if min(min(curve.losses) for curve in curves) > 0:
            left.set_yscale("log")
        left.set(xlabel="epoch", ylabel="mean training loss")
        right.set(xlabel="epoch", ylabel=f"test {metric}")
        for axes in (left, right):
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(axis="y", color="#e9ebee", lw=0.8)
        figure.legend(loc="outside lower center", ncols=min(len(names), 5), frameon=False, fontsize=8)
        return _svg(figure)


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8)):
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) >= 3:
            return ticks
    return [low * 1.35, high / 1.35]


_PLACES = [(9, 0, "left", "center"), (-9, 0, "right", "center")] + [
    (x, y, side, base)
    for d in (8, 20, 32, 44)
    for y, base in ((d, "bottom"), (-d, "top"))
    for x, side in ((0, "center"), (9, "left"), (-9, "right"))
]
"""Where a name may stand beside its mark, in points, best first."""


def _label(figure: "Figure", axes: Any, points: Sequence[Point]) -> None:
    """Writes every name where it covers no mark, no error bar and no other name."""
    figure.canvas.draw()
    to_pixels = axes.transData.transform
    taken = []
    for p in points:
        x, low = to_pixels((p.size, p.accuracy - p.spread))
        _, high = to_pixels((p.size, p.accuracy + p.spread))
        taken.append((x - 6, low - 6, x + 6, high + 6))
    frame = axes.get_window_extent()
    for p in points:
        if p.is_baseline:
            _, y = to_pixels((p.size, p.accuracy))
            taken.append((frame.x0, y - 1, frame.x1, y + 1))
    for p in sorted(points, key=lambda p: (p.size, p.accuracy)):
        for x, y, side, base in _PLACES:
            text = axes.annotate(
                p.name,
                (p.size, p.accuracy),
                (x, y),
                textcoords="offset points",
                ha=side,
                va=base,
                color=INK,
                fontsize=8.5,
            )
            box = text.get_window_extent()
            inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 + 40 and box.y0 >= frame.y0 and box.y1 <= frame.y1 + 10
            if inside and not any(box.x0 < b[2] and box.x1 > b[0] and box.y0 < b[3] and box.y1 > b[1] for b in taken):
                taken.append((box.x0, box.y0, box.x1, box.y1))
                break
            text.remove()
        else:
            text = axes.annotate(
                p.name, (p.size, p.accuracy), (9, 0), textcoords="offset points", color=INK, fontsize=8.5
            )


def grids(panels: Sequence[Panel]) -> str:
    """Returns histograms as SVG, one per panel, with the numbers the format can hold as lines.

    Four in a row where weights and inputs take turns, else three.

    Raises:
        ValueError: if there is no panel.
        ImportError: if matplotlib is not installed.
    """
    if not panels:
        raise ValueError("grids needs at least one panel")
    columns = min(len(panels), 4 if len({panel.unit for panel in panels}) > 1 else 3)
    rows = math.ceil(len(panels) / columns)
    with _pyplot() as plt:
        figure, axes = plt.subplots(rows, columns, figsize=(max(2.75 * columns, 4.0), 2.35 * rows), squeeze=False)
        for place, panel in zip(axes.flat, panels, strict=False):
            _histogram(place, panel)
        for place in axes.flat[len(panels) :]:
            place.set_axis_off()
        for row in axes:
            row[0].set_ylabel("values (log)")
        return _svg(figure)


def _histogram(axes: Any, panel: Panel) -> None:
    values, levels = np.asarray(panel.values, np.float64), np.asarray(panel.levels, np.float64)
    low, high = min(values.min(), levels[0]), max(values.max(), levels[-1])
    margin = 0.04 * (high - low or 1.0)
    edges = np.linspace(low - margin, high + margin, 43)
    axes.hist(values, edges, color=BLUE, alpha=0.85, log=True, lw=0, histtype="stepfilled")  # one path, not 42
    if len(levels) <= MANY_LEVELS:
        axes.vlines(levels, 0, 1, transform=axes.get_xaxis_transform(), color=ORANGE, lw=0.7, alpha=0.9)
    else:
        axes.axvspan(levels[0], levels[-1], color=ORANGE, alpha=0.13, lw=0, zorder=0)
        ends = [levels[0], levels[-1]]
        axes.vlines(ends, 0, 1, transform=axes.get_xaxis_transform(), color=ORANGE, lw=1.0)
    axes.set_xlim(edges[0], edges[-1])
    axes.yaxis.minorticks_off()
    title = panel.title if len(panel.title) <= 34 else f"…{panel.title[-33:]}"
    axes.set_title(f"{title}\n{panel.note}", linespacing=1.4)
    axes.set_xlabel(panel.unit)


class _pyplot:
    """Matplotlib's pyplot with the Agg backend and our style, for the length of a block."""

    def __enter__(self) -> Any:
        try:
            import matplotlib as mpl
        except ImportError as error:
            raise ImportError("plots need matplotlib: pip install 'lowbit[run]'") from error
        mpl.use("Agg")
        from matplotlib import pyplot as plt

        self._plt = plt
        self._context = mpl.rc_context(_STYLE)  # pyright: ignore[reportArgumentType]  # plain strings are its keys
        self._context.__enter__()
        return plt

    def __exit__(self, *error: object) -> None:
        self._plt.close("all")
        self._context.__exit__(*error)  # pyright: ignore[reportArgumentType]


def _svg(figure: "Figure") -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    # A tenth of a point is not seen in a path; texts keep their numbers.
    text = re.sub(r' d="[^"]*"', lambda d: re.sub(r"(\d\.\d)\d+", r"\1", d[0]), buffer.getvalue())
    text = re.sub(r"font-family: ('DejaVu Sans'), [^;\"]*", r"font-family: \1, sans-serif", text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    return re.sub(r"^.*?(?=<svg)", "", text, count=1, flags=re.DOTALL)  # no XML prologue inside HTML
