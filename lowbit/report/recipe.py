"""What a recipe did, as a page: the table, bars by operation, the three that lose most, and the curve of error through the model."""

import html
from collections.abc import Sequence

from lowbit.recipes.report import HEADS, Line, Report, cells

from .page import details, figure, page, table
from .tables import Table

_WIDTH, _BAR, _NAME = 900, 18, 320
_BLUE, _ORANGE, _INK = "#2b5c9e", "#e07b29", "#1c1e21"


def recipe_page(report: Report, *, title: str = "quantized model") -> str:
    """Returns a report as one HTML file.

    Args:
        report: from `lowbit.quantize`.
        title: of the page.
    """
    guilty = report.guilty
    worst = ", ".join(line.path for line in guilty) or "nothing"
    lead = (
        f"{report.bits_per_weight:.3f} bits per weight with scales, {report.nbytes:,} bytes. "
        f"Loses most by its own rounding: {worst}."
    )
    sections = [
        figure("Noise that each operation adds", bars(report.lines, [line.path for line in guilty]), caption=_BARS),
        table(Table("operations", HEADS, [cells(line) for line in report.lines])),
        details("recipe", report.recipe),
    ]
    if any(line.accumulated_db is not None for line in report.lines):
        sections.insert(1, figure("Error through the model", curve(report.lines), caption=_CURVE))
    return page(title, lead, sections)


_BARS = (
    "Decibels of signal over noise of each operation's results, from the rounding of its own weights (and inputs, where it was "
    "measured): short bars lose most; orange are the three worst."
)
_CURVE = (
    "Decibels of signal over noise of each operation's results: dots with it alone quantized, the line with everything before "
    "it quantized too. Where the line falls and the dot is low, error is made; where only the line is low, it passes through."
)


def bars(lines: Sequence[Line], marked: Sequence[str]) -> str:
    """Returns a bar per operation as SVG.

    Args:
        lines: of a report; operations without a number have no bar.
        marked: paths of bars in another colour.
    """
    known = [(line.path, value) for line in lines if (value := _bounded(line.output_db)) is not None]
    top = max([value for _, value in known], default=1.0)
    height = _BAR * len(known) + 8
    parts = []
    for i, (path, value) in enumerate(known):
        y, width = _BAR * i + 4, max(1.0, (_WIDTH - _NAME - 60) * max(value, 0.0) / max(top, 1e-6))
        fill = _ORANGE if path in marked else _BLUE
        parts.append(
            f'<text x="{_NAME - 8}" y="{y + 12}" text-anchor="end">{html.escape(path)}</text>'
            f'<rect x="{_NAME}" y="{y}" width="{width:.1f}" height="{_BAR - 5}" fill="{fill}"/>'
            f'<text x="{_NAME + width + 5:.1f}" y="{y + 12}">{value:.1f}</text>'
        )
    return _svg(height, parts)


def curve(lines: Sequence[Line]) -> str:
    """Returns, as SVG, noise by operation: of its weight alone as dots, accumulated as a line."""
    alone = [_bounded(line.output_db) for line in lines]
    through = [_bounded(line.accumulated_db) for line in lines]
    known = [x for x in (*alone, *through) if x is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    height, count = 260, max(len(lines) - 1, 1)

    def at(i: int, value: float) -> str:
        x = 40 + (_WIDTH - 60) * i / count
        y = 10 + (height - 30) * (1 - (value - low) / max(high - low, 1e-6))
        return f"{x:.1f},{y:.1f}"

    parts = [f'<text x="0" y="18">{high:.0f} dB</text><text x="0" y="{height - 16}">{low:.0f} dB</text>']
    points = " ".join(at(i, value) for i, value in enumerate(through) if value is not None)
    parts.append(f'<polyline points="{points}" fill="none" stroke="{_BLUE}" stroke-width="1.5"/>')
    for i, (line, value) in enumerate(zip(lines, alone, strict=True)):
        if value is not None:
            x, y = at(i, value).split(",")
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="3" fill="{_ORANGE}"><title>{html.escape(line.path)}</title></circle>'
            )
    return _svg(height, parts)


def _svg(height: int, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" font-size="11" fill="{_INK}"'
    return f'{head} xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'


def _bounded(value: float | None) -> float | None:
    return None if value is None or value != value else min(max(value, -20.0), 160.0)
