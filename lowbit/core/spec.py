"""What a quantized operand is: format, granularity and scale, as frozen, hashable data."""

import abc
import dataclasses

from jaxtyping import Array, Float, Shaped

from .granularity import Channel as Channel
from .granularity import Granularity as Granularity
from .granularity import Group as Group
from .granularity import Tensor as Tensor
from .granularity import Tile as Tile
from .operand import Operand as Operand
from .operand import shape_of as shape_of
from .storage import Plain, Storage


@dataclasses.dataclass(frozen=True)
class Format(abc.ABC):
    """Which numbers the codes stand for. Subclasses are final, frozen dataclasses in `lowbit.formats`.

    A *level* is a number of the format carried in float32 (for integers, the integer itself); a *code* is what is
    stored. `nearest` makes levels, `encode` turns levels into codes exactly, `decode` turns codes into levels.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The word of the rule text and of files: ``int4``, ``nf4``, ``fp8_e4m3``."""

    @property
    @abc.abstractmethod
    def bits(self) -> int:
        """Stored bits per code, without scales."""

    @property
    @abc.abstractmethod
    def low(self) -> float:
        """The smallest level."""

    @property
    @abc.abstractmethod
    def high(self) -> float:
        """The largest level."""

    @property
    @abc.abstractmethod
    def is_integer(self) -> bool:
        """Whether the levels are integers, so that an operation may run in integer arithmetic."""

    @property
    def is_signed(self) -> bool:
        """Whether codes are stored in two's complement. Formats whose codes are indices or bit fields say no."""
        return self.low < 0 and self.is_integer

    @property
    def smallest(self) -> float:
        """The smallest positive level; scales are floored so that it times the scale is a normal float32."""
        return 1.0

    @property
    def reach(self) -> float:
        """The level that the largest magnitude of a symmetric range is scaled to."""
        return self.high if self.high > 0 else -self.low

    @property
    def far_end(self) -> float:
        """The level furthest from zero, the highest of two: where a scale with a sign puts the largest value."""
        return self.low if -self.low > self.high else self.high

    @property
    def has_zero(self) -> bool:
        """Whether zero is a level. Where it is not, a block of zeros has the smallest scale there is: next to zero."""
        return True

    @property
    def is_mirrored(self) -> bool:
        """Whether the negative of every level is a level: then a negative scale makes the same grid as a positive one."""
        return self.low == -self.high

    @property
    def has_rounding(self) -> bool:
        """Whether `nearest` takes ``round=``: integers and floats do, codebooks have their own ties."""
        return False

    @property
    def mantissa_bits(self) -> int:
        """Stored mantissa bits of a float format; for other formats those of the largest level, ``bits - 2``."""
        return max(self.bits - 2, 0)

    @abc.abstractmethod
    def nearest(self, x: Float[Array, "..."], low: Array | float, high: Array | float) -> Float[Array, "..."]:
        """Returns the nearest level of ``x`` (float32) within ``[low, high]``; the gradient passes straight through.

        The gradient is clipped strictly: nothing reaches ``x`` on or outside the bounds.
        """

    @abc.abstractmethod
    def encode(self, levels: Float[Array, "..."]) -> Shaped[Array, "..."]:
        """Returns the codes (int8, uint8 or int16) of ``levels``; exact, because levels are already on the grid."""

    @abc.abstractmethod
    def decode(self, codes: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """Returns the levels (float32) of ``codes``; the exact inverse of `encode`."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """How one operand is stored: which numbers, which of them share a scale, and what the scale is.

    Attributes:
        format: the numbers.
        granularity: who shares a scale.
        symmetric: whether the grid has no zero point.
        scale: how the scale is stored: what it is rounded to, and what it takes.
        dynamic: whether the scale is computed from the values at run time instead of being stored.
        signed: whether a scale may be negative where its storage leaves that open: the grid of levels that reach further on
            one side (``int4``: -8 to 7) is then turned to the side of the largest value. Storages of signed integers always
            are, see `has_signed_scales`.
    """

    format: Format
    granularity: Granularity
    symmetric: bool = True
    scale: Storage = Plain()
    dynamic: bool = False
    signed: bool = False

    def __post_init__(self):
        if not self.symmetric and not self.format.is_integer:
            raise ValueError(f"only integer formats can be affine, got {self.format.name}; use /sym")
        self.scale.check(self.format, self.granularity)
        if self.signed and self.scale.signs != "either":
            raise ValueError(
                f"a scale stored as {self.scale.name} {'has a sign anyway' if self.scale.signs == 'always' else 'has no sign'}"
                f": leave out /signed"
            )
        if self.has_signed_scales:
            self._check_signed()

    @property
    def has_signed_scales(self) -> bool:
        """Whether a scale may be negative."""
        return self.signed or self.scale.signs == "always"

    @property
    def merged(self) -> "Spec":
        """What an operation computes with: integers of groups multiplied into the levels; itself of all other specs."""
        return self.scale.merged_spec(self)

    @property
    def text(self) -> str:
        """The spec as the part of a rule text that parses back to it, without its ``w`` or ``a``."""
        options = [self.granularity.text, "sym" if self.symmetric else "affine"]
        if self.scale != Plain():
            options.append(self.scale.name)
        options += [word for word, holds in (("signed", self.signed), ("dynamic", self.dynamic)) if holds]
        return "/".join([self.format.name, *options])

    def _check_signed(self) -> None:
        what = "/signed" if self.signed else f"/{self.scale.name}"
        if not self.symmetric or self.dynamic:
            raise ValueError(
                f"{what} is for symmetric grids whose scale is stored; a zero point moves a grid to either side"
            )
        if self.format.low >= 0:
            raise ValueError(
                f"{what} needs a format whose levels a negative scale can turn around, got {self.format.name}, which has no "
                f"negative levels"
            )
        if self.format.is_mirrored:
            instead = "" if self.signed else f"; use /u{self.scale.name}"
            raise ValueError(
                f"{what} would waste the sign of a scale: got {self.format.name}, which is its own mirror image{instead}"
            )
