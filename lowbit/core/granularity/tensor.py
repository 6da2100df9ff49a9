"""One scale for the whole array."""

import dataclasses

from lowbit.core.blocks import Dim
from lowbit.core.operand import Operand

from .base import Granularity, unstacked


@dataclasses.dataclass(frozen=True)
class Tensor(Granularity):
    """One scale for the whole array (for every layer of a scanned stack)."""

    def blocks(self, operand: Operand) -> tuple[Dim, ...]:
        return unstacked(operand, operand.shape)

    @property
    def text(self) -> str:
        return "tensor"

    @property
    def kind(self) -> str:
        return "tensor"

    @property
    def is_one_per_array(self) -> bool:
        return True


WORDS = ("tensor",)


def named(word: str) -> Tensor | None:
    """Returns the granularity ``tensor``, or None."""
    return Tensor() if word == "tensor" else None
