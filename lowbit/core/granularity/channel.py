"""One scale per channel."""

import dataclasses

from lowbit.core.blocks import Dim
from lowbit.core.operand import Operand

from .base import Granularity, unstacked


@dataclasses.dataclass(frozen=True)
class Channel(Granularity):
    """One scale per index of the axes that are not contracted: per output channel, per row, per token."""

    def blocks(self, operand: Operand) -> tuple[Dim, ...]:
        return unstacked(operand, [n if i in operand.contract else 1 for i, n in enumerate(operand.shape)])

    @property
    def text(self) -> str:
        return "channel"

    @property
    def kind(self) -> str:
        return "channel"


WORDS = ("channel",)


def named(word: str) -> Channel | None:
    """Returns the granularity ``channel``, or None."""
    return Channel() if word == "channel" else None
