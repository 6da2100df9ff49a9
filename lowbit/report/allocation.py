"""Pictures of a mixed-precision choice: the front, bits along the network, scores, predicted against measured.

Each is returned as SVG, for a page, and where a ``path`` is given also written there as PNG.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lowbit.allocate.choose import Allocation
from lowbit.allocate.pareto import Front
from lowbit.allocate.scores import Scores
from lowbit.core import atomic
from lowbit.plan.costs import weight_bits
from lowbit.plan.rows import Plan

from .figures import BLUE, GREY, ORANGE, _pyplot, _svg
from .page import details, figure, page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pareto_front(front: Front, *, label: str = "expected loss", path: str | Path | None = None) -> str:
    """Returns the front as SVG, uniform choices as named marks above it.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    with _pyplot() as plt:
        drawing, axes = plt.subplots(figsize=(7.4, 4.2))
        axes.step([p.cost for p in front.points], [p.score for p in front.points], color=BLUE, where="post", lw=1.2)
        axes.plot(
            [p.cost for p in front.points], [p.score for p in front.points], "o", color=BLUE, markersize=3, label="best"
        )
        axes.plot([p.cost for p in front.uniform], [p.score for p in front.uniform], "s", color=ORANGE, label="uniform")
        for point in front.uniform:
            axes.annotate(point.choice[0], (point.cost, point.score), (5, 4), textcoords="offset points", fontsize=8)
        if min([p.score for p in (*front.points, *front.uniform)]) > 0:
            axes.set_yscale("log")
        axes.set(xlabel=front.unit, ylabel=label)
        axes.legend(frameon=False)
        return _drawn(drawing, path)


def bits_by_layer(plan: Plan, *, path: str | Path | None = None) -> str:
    """Returns the stored bits of every weight along the network as SVG, scales included.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    rows = [row for row in plan.rows if row.weight is not None]
    bits = [weight_bits(row.weight) / max(math.prod(row.weight.operand.shape), 1) for row in rows if row.weight]
    with _pyplot() as plt:
        drawing, axes = plt.subplots(figsize=(7.4, 1.2 + 0.22 * len(rows)))
        axes.barh(range(len(rows)), bits, color=BLUE)
        axes.set_yticks(range(len(rows)), [row.path for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("stored bits of a weight")
        return _drawn(drawing, path)


def heat_map(scores: Scores, *, path: str | Path | None = None) -> str:
    """Returns the scores as SVG, operations down, candidates across, colours logarithmic; grey: does not fit.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    table = scores.array()
    shown = np.full(table.shape, np.nan)
    is_shown = np.isfinite(table) & (table > 0)
    shown[is_shown] = np.log10(table[is_shown])
    with _pyplot() as plt:
        drawing, axes = plt.subplots(figsize=(7.4, 1.2 + 0.22 * len(scores.paths)))
        axes.set_facecolor(GREY)
        image = axes.imshow(np.ma.masked_invalid(shown), aspect="auto", cmap="viridis")
        axes.set_yticks(range(len(scores.paths)), scores.paths)
        axes.set_xticks(range(len(scores.names)), scores.names)
        drawing.colorbar(image, label=f"log10 of the score ({scores.method})")
        return _drawn(drawing, path)


def predicted_against_measured(
    predicted: Sequence[float], measured: Sequence[float], *, path: str | Path | None = None
) -> str:
    """Returns a mark for every plan as SVG, with the line of equal numbers.

    Args:
        predicted: sums of scores.
        measured: losses of the same plans.
        path: of a PNG that is written too, or None.

    Raises:
        ValueError: for other than two lists of one length.
        ImportError: if matplotlib is not installed.
    """
    if len(predicted) != len(measured) or not len(predicted):
        raise ValueError(f"predicted and measured must be of one length, got {len(predicted)} and {len(measured)}")
    with _pyplot() as plt:
        drawing, axes = plt.subplots(figsize=(4.6, 4.2))
        ends = [min(*predicted, *measured), max(*predicted, *measured)]
        axes.plot(ends, ends, color=GREY, lw=0.8)
        axes.plot(predicted, measured, "o", color=BLUE, markersize=4)
        if ends[0] > 0:
            axes.set(xscale="log", yscale="log")
        axes.set(xlabel="predicted", ylabel="measured")
        return _drawn(drawing, path)


def _drawn(drawing: "Figure", path: str | Path | None) -> str:
    if path is not None:
        with atomic.replacing(Path(path)) as part:
            drawing.savefig(part, format="png", dpi=150, metadata={"Software": None})
    return _svg(drawing)


def allocation_page(
    found: Allocation,
    scores: Scores,
    front: Front | None,
    *,
    title: str = "mixed precision",
    folder: str | Path | None = None,
) -> str:
    """Returns a choice as one HTML file; its pictures are also written into ``folder`` as PNG, if there is one.

    Raises:
        ImportError: if matplotlib is not installed.
    """

    def at(name: str) -> Path | None:
        return None if folder is None else Path(folder) / name

    sections = [
        figure("Bits along the network", bits_by_layer(found.plan, path=at("bits.png"))),
        figure("Scores", heat_map(scores, path=at("scores.png"))),
    ]
    if front is not None:
        sections.insert(0, figure("Front", pareto_front(front, path=at("front.png"))))
    return page(
        title, f"Budget: {found.budget}; optimality gap {found.gap:.1e}.", [*sections, details("table", str(found))]
    )
