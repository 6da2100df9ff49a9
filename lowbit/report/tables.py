"""One table, three ways: for the terminal, as text, as HTML (`lowbit.report.page`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from lowbit.core.aligned import aligned

if TYPE_CHECKING:
    from rich.table import Table as RichTable


class Table(NamedTuple):
    """A title, column heads, and rows of text. The first column is a name, the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Returns mean and sample standard deviation as text; one value stands alone.

    Example:
        >>> spread([87.0, 88.0, 89.0]), spread([88.0])
        ('88.00 ± 1.00', '88.00')
    """
    if not values:
        return "-"
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    deviation = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def size(count: float | int) -> str:
    """Returns a number of bytes as text, in units of 1000.

    Example:
        >>> size(512), size(65_536), size(12_500_000)
        ('512 B', '65.5 kB', '12.5 MB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def text(table: Table) -> str:
    """Returns the table as plain text, names to the left, numbers to the right.

    Example:
        >>> print(text(Table("t", ["method", "bits"], [["float", "32"], ["w4", "4.5"]])))
        method  bits
        ------  ----
        float     32
        w4       4.5
    """
    lines = [list(table.columns), *[list(row) for row in table.rows]]
    return "\n".join(aligned(lines, ruled=True))


def width(table: Table) -> int:
    """Returns the columns of a terminal that `rich_table` needs."""
    lines = [table.columns, *table.rows]
    return sum(3 + max(len(line[i]) for line in lines) for i in range(len(table.columns)))


def rich_table(table: Table) -> "RichTable":
    """Returns the table for a rich console.

    Raises:
        ImportError: if rich is not installed.
    """
    try:
        from rich import box
        from rich.table import Table as RichTable
    except ImportError as error:
        raise ImportError("tables in colour need rich: pip install 'lowbit[run]'") from error
    rich = RichTable(title=table.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for i, column in enumerate(table.columns):
        rich.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in table.rows:
        rich.add_row(*row)
    return rich
