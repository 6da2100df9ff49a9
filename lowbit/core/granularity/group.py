"""One scale per few neighbours along the contraction."""

import dataclasses
import re

from lowbit.core.blocks import Dim
from lowbit.core.operand import Operand

from .base import Granularity, unstacked


@dataclasses.dataclass(frozen=True)
class Group(Granularity):
    """One scale per ``size`` neighbours along the last contracted axis; the other axes have their own.

    A group larger than the axis is the whole axis; a last group may be short.
    """

    size: int

    def __post_init__(self):
        if self.size < 2:
            raise ValueError(f"group size must be at least 2, got {self.size}")

    def blocks(self, operand: Operand) -> tuple[Dim, ...]:
        if not operand.contract:
            raise ValueError(f"a group of {self.size} needs a contracted axis; the operand {operand.shape} has none")
        last = operand.contract[-1]
        return unstacked(operand, [min(self.size, n) if i == last else 1 for i, n in enumerate(operand.shape)])

    @property
    def text(self) -> str:
        return f"g{self.size}"

    @property
    def kind(self) -> str:
        return "group"


WORDS = ("gN",)


def named(word: str) -> Group | None:
    """Returns the granularity of ``gN``, N elements per scale, or None."""
    match = re.fullmatch(r"g(\d+)", word)
    return Group(int(match[1])) if match else None
