"""Powers of two in one byte, ``e8m0``: the scales of the OCP microscaling formats."""

import dataclasses
from typing import Literal

from jaxtyping import Array, Float

from lowbit.core.gradients import straight_through
from lowbit.core.operand import Operand
from lowbit.core.powers import ceil_power_of_two, power_of_two_scale
from lowbit.core.spec import Format
from lowbit.core.storage import Numbers, Storage

WORDS = ("e8m0",)


@dataclasses.dataclass(frozen=True)
class E8M0(Storage):
    """A power of two. A learned scale takes the next one up, so that nothing saturates; range rules have rules of their own.

    Reference: OCP Microscaling Formats (MX) v1.0, section 5.4.1.
    """

    @property
    def name(self) -> str:
        return "e8m0"

    @property
    def bits(self) -> float:
        return 8.0

    @property
    def dtype(self) -> str | None:
        return "float8_e8m0fnu"

    @property
    def signs(self) -> Literal["never", "either", "always"]:
        return "never"

    def of_reach(self, reach: Float[Array, "..."], numbers: Format, rule: str) -> Float[Array, "..."]:
        return power_of_two_scale(reach, numbers.reach, rule=rule, mantissa_bits=numbers.mantissa_bits)

    def stored(
        self, scale: Float[Array, "..."], operand: Operand | None, outer: Float[Array, "..."] | None = None
    ) -> Float[Array, "..."]:
        return straight_through(scale, ceil_power_of_two(scale))


def named(word: str, numbers: Numbers) -> E8M0 | None:
    """Returns ``e8m0``, or None."""
    return E8M0() if word == "e8m0" else None
