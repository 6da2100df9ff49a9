"""Lines of cells as text in columns."""

from collections.abc import Collection, Sequence


def shown(text: str) -> str:
    r"""Returns one line of text without what a terminal obeys instead of showing: a file of somebody else may have put it together.

    Example:
        >>> shown("a name\x1b[2J, 2 × 3\nexact")
        'a name\\x1b[2J, 2 × 3\\nexact'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def aligned(lines: Sequence[Sequence[str]], left: Collection[int] = (0,), *, ruled: bool = False) -> list[str]:
    """Returns the lines with cells of one width per column, two spaces apart, without spaces at their ends.

    Args:
        lines: of cells, the head first; all of one length; `shown`.
        left: columns that begin at the left; the others end at the right.
        ruled: whether a line of dashes follows the head.

    Example:
        >>> for line in aligned([["method", "bits"], ["float", "32"]], ruled=True):
        ...     print(line)
        method  bits
        ------  ----
        float     32
    """
    lines = [[shown(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]] if ruled else lines
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
