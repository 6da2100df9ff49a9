"""Integers of 1 to 8 bits, and 16 for inputs: signed, unsigned, narrow.

A value of an integer grid carries the bits of its level: written in bfloat16 (8 bits of precision) it finds its own
code again where ``|level - zero| <= 127``, in float16 (11 bits) where it is at most 1023. Affine 8-bit and 16-bit grids
are therefore for inputs, or for float32 parameters.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from lowbit.core.rounding import clip_between, nearest_even
from lowbit.core.spec import Format
from lowbit.formats.rounding import Round


@dataclasses.dataclass(frozen=True)
class Integer(Format):
    """Two's complement ``[-2**(b-1), 2**(b-1) - 1]``, or ``[0, 2**b - 1]`` unsigned; narrow drops the lowest code.

    Narrow signed is symmetric, ``[-(2**(b-1) - 1), 2**(b-1) - 1]``; narrow unsigned is ``[0, 2**b - 2]``
    (Krishnamoorthi, 2018, section 2.2).

    Attributes:
        width: bits, 1 to 8, or 16. Signed 1 bit is {-1, 0}: see `lowbit.formats.signs` for {-1, +1}.
        signed: two's complement or unsigned.
        narrow: whether the lowest (signed) or highest (unsigned) code is unused.

    Example:
        >>> Integer(4).low, Integer(4).high, Integer(4, narrow=True).name
        (-8.0, 7.0, 'int4n')
    """

    width: int
    signed: bool = True
    narrow: bool = False

    def __post_init__(self):
        if isinstance(self.width, bool) or not isinstance(self.width, int):
            raise TypeError(f"bits must be an int, got {self.width!r}")
        if not (1 <= self.width <= 8 or self.width == 16):
            raise ValueError(f"integer formats have 1 to 8 or 16 bits, got {self.width}")
        if self.narrow and self.width == 1:
            raise ValueError("a narrow 1-bit integer has one level left; use at least 2 bits")

    @property
    def name(self) -> str:
        return f"{'int' if self.signed else 'uint'}{self.width}{'n' if self.narrow else ''}"

    @property
    def bits(self) -> int:
        return self.width

    @property
    def low(self) -> float:
        return float(-(2 ** (self.width - 1)) + self.narrow) if self.signed else 0.0

    @property
    def high(self) -> float:
        return float(2 ** (self.width - 1) - 1) if self.signed else float(2**self.width - 1 - self.narrow)

    @property
    def is_integer(self) -> bool:
        return True

    @property
    def is_signed(self) -> bool:
        return self.signed

    @property
    def has_rounding(self) -> bool:
        return True

    def nearest(
        self,
        x: Float[Array, "..."],
        low: Array | float,
        high: Array | float,
        *,
        round: Round = nearest_even,
    ) -> Float[Array, "..."]:
        return round(clip_between(x, low, high))

    def encode(self, levels: Float[Array, "..."]) -> Shaped[Array, "..."]:
        if self.width > 8:
            return levels.astype(jnp.int16 if self.signed else jnp.uint16)
        return levels.astype(jnp.int8 if self.signed else jnp.uint8)

    def decode(self, codes: Shaped[Array, "..."]) -> Float[Array, "..."]:
        return codes.astype(jnp.float32)


FORMATS = tuple(
    Integer(width, signed, narrow)
    for signed in (True, False)
    for narrow in (False, True)
    for width in (1, 2, 3, 4, 5, 6, 7, 8, 16)
    if not (narrow and width == 1)
)
"""Every integer format."""


def named(name: str) -> Integer | None:
    """Returns the integer format of this name, or None: ``4``, ``int4``, ``int4n``, ``uint8``."""
    narrow = name.endswith("n")
    word = name[:-1] if narrow else name
    for prefix, signed in (("uint", False), ("int", True), ("", True)):
        if word.startswith(prefix) and word[len(prefix) :].isdecimal():
            return Integer(int(word[len(prefix) :]), signed, narrow)
    return None
