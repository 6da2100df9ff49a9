"""One byte of fp8 per block times one float32 per tensor, ``e4m3``: the scales of NVFP4."""

import dataclasses

from lowbit.core.blocks import Dim
from lowbit.core.granularity import Tensor
from lowbit.core.operand import Operand
from lowbit.core.spec import Spec
from lowbit.core.storage import Numbers

from .nested import Nested

WORDS = ("e4m3",)


@dataclasses.dataclass(frozen=True)
class E4M3(Nested):
    """Block scales in fp8 e4m3, the largest of a tensor (of a layer of a stack) being 448 of its float32."""

    @property
    def name(self) -> str:
        return "e4m3"

    def blocks(self, shape: tuple[Dim, ...], operand: Operand | None) -> tuple[Dim, ...]:
        return Tensor().blocks(Operand(shape, stack=0 if operand is None else operand.stack))


def named(word: str, numbers: Numbers) -> E4M3 | None:
    """Returns ``e4m3``, or None."""
    return E4M3(Spec(numbers("fp8_e4m3"), Tensor())) if word == "e4m3" else None
