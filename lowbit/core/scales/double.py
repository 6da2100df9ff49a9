"""Eight bits per scale with a float32 per 256 scales, ``dq``: double quantization."""

import dataclasses
from typing import Literal

from lowbit.core.blocks import Dim
from lowbit.core.granularity import Group
from lowbit.core.operand import Operand
from lowbit.core.spec import Spec
from lowbit.core.storage import Numbers

from .nested import Nested

WORDS = ("dq",)


@dataclasses.dataclass(frozen=True)
class Double(Nested):
    """Scales in 8 unsigned bits, in groups of 256 along their longest axis.

    QLoRA (Dettmers et al., 2023, arXiv 2305.14314, section 3) subtracts the mean of the scales first and spends a bit on
    the sign; here 8 unsigned bits cover zero to the largest.
    """

    @property
    def name(self) -> str:
        return "dq"

    @property
    def signs(self) -> Literal["never", "either", "always"]:
        return "never"

    def blocks(self, shape: tuple[Dim, ...], operand: Operand | None) -> tuple[Dim, ...]:
        stack = 0 if operand is None else operand.stack
        longest = max(range(stack, len(shape)), key=lambda axis: shape[axis], default=0)
        return self.numbers.granularity.blocks(Operand(shape, contract=(longest,) if shape else (), stack=stack))


def named(word: str, numbers: Numbers) -> Double | None:
    """Returns ``dq``, or None."""
    return Double(Spec(numbers("uint8"), Group(256))) if word == "dq" else None
