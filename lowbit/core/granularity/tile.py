"""One scale per rectangle of a matrix."""

import dataclasses
import re

from lowbit.core.blocks import Dim
from lowbit.core.operand import Operand

from .base import Granularity, unstacked


@dataclasses.dataclass(frozen=True)
class Tile(Granularity):
    """One scale per ``rows x columns`` tile: ``rows`` along the last contracted axis, ``columns`` along the last free."""

    rows: int
    columns: int

    def __post_init__(self):
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"a tile needs positive sides, got {self.rows} x {self.columns}")

    def blocks(self, operand: Operand) -> tuple[Dim, ...]:
        free = [i for i in range(len(operand.shape)) if i not in operand.contract and i >= operand.stack]
        if not operand.contract or not free:
            raise ValueError(f"a tile needs a contracted and a free axis; got the operand {operand.shape}")
        sides = {operand.contract[-1]: self.rows, free[-1]: self.columns}
        return unstacked(operand, [min(sides.get(i, 1), n) for i, n in enumerate(operand.shape)])

    @property
    def text(self) -> str:
        return f"t{self.rows}x{self.columns}"

    @property
    def kind(self) -> str:
        return "tile"


WORDS = ("tAxB",)


def named(word: str) -> Tile | None:
    """Returns the granularity of ``tAxB``, A rows by B columns per scale, or None."""
    match = re.fullmatch(r"t(\d+)x(\d+)", word)
    return Tile(int(match[1]), int(match[2])) if match else None
