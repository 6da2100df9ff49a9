"""What a granularity is. A file beside this one with a ``named`` function is one, and is found."""

import abc
import dataclasses
from collections.abc import Sequence

from lowbit.core.blocks import Dim
from lowbit.core.operand import Operand


@dataclasses.dataclass(frozen=True)
class Granularity(abc.ABC):
    """Which elements share a scale. Subclasses are final, frozen dataclasses, one per file.

    Their module has ``WORDS``, the options of the rule text as they are listed to a user (``("gN",)``), and ``named``,
    from such an option to the granularity, or None; it raises ValueError where the option is one and its numbers are not.
    """

    @abc.abstractmethod
    def blocks(self, operand: Operand) -> tuple[Dim, ...]:
        """Returns the elements per scale along every axis of ``operand.shape``."""

    @property
    @abc.abstractmethod
    def text(self) -> str:
        """The option of the rule text: ``tensor``, ``channel``, ``g32``."""

    @property
    @abc.abstractmethod
    def kind(self) -> str:
        """What it is without its numbers: ``tensor``, ``channel``, ``group``, ``tile``."""

    @property
    def is_one_per_array(self) -> bool:
        """Whether the whole array has one scale, so that a stored one does not depend on the batch."""
        return False


def unstacked(operand: Operand, blocks: Sequence[Dim]) -> tuple[Dim, ...]:
    """Returns blocks that no two layers of a stack share, of at least one element."""
    return tuple(1 if axis < operand.stack else max(block, 1) for axis, block in enumerate(blocks))
