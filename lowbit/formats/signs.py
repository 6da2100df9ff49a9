"""Very few levels: binary {-1, +1}, ternary {-1, 0, +1}, and mid-rise grids without a zero.

Mid-rise levels are the odd integers, ``{-3, -1, 1, 3}`` for 2 bits, so the scale is *half* the distance between
neighbours. Their codes count from the bottom; the codes of ternary are the levels.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, Shaped, UInt8

from lowbit.core.rounding import clip_between, nearest_even, unfused
from lowbit.core.spec import Format, Spec
from lowbit.formats.rounding import Round

_POWERS = (1, 3, 9, 27, 81)


@dataclasses.dataclass(frozen=True)
class MidRise(Format):
    """``2**width`` levels without a zero: the odd integers from ``1 - 2**width`` to ``2**width - 1``.

    A value half way between two levels takes the one whose code is even; zero is such a value. NaN stays NaN as a level
    and has the code 0, the lowest level.

    Attributes:
        width: bits, 1 to 8. Width 1 is ``binary``.

    Reference: Liu et al., ParetoQ, 2025, https://arxiv.org/abs/2502.02631, section 3.2 (2-bit levels +-1.5, +-0.5).

    Example:
        >>> MidRise(2).nearest(jnp.array([-9.0, -0.1, 0.2, 2.5]), -3.0, 3.0).tolist()
        [-3.0, -1.0, 1.0, 3.0]
    """

    width: int

    def __post_init__(self):
        if isinstance(self.width, bool) or not isinstance(self.width, int):
            raise TypeError(f"bits must be an int, got {self.width!r}")
        if not 1 <= self.width <= 8:
            raise ValueError(f"mid-rise formats have 1 to 8 bits, got {self.width}")

    @property
    def name(self) -> str:
        return "binary" if self.width == 1 else f"mid{self.width}"

    @property
    def bits(self) -> int:
        return self.width

    @property
    def low(self) -> float:
        return float(1 - 2**self.width)

    @property
    def high(self) -> float:
        return float(2**self.width - 1)

    @property
    def is_integer(self) -> bool:
        """False: the codes are not the levels."""
        return False

    @property
    def has_zero(self) -> bool:
        return False

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
        index = round(unfused(clip_between(x, low, high) * 0.5) + 0.5 * self.high)
        return 2.0 * index - self.high

    def encode(self, levels: Float[Array, "..."]) -> Shaped[Array, "..."]:
        return (0.5 * (levels + self.high)).astype(jnp.uint8)

    def decode(self, codes: Shaped[Array, "..."]) -> Float[Array, "..."]:
        return 2.0 * codes.astype(jnp.float32) - self.high


@dataclasses.dataclass(frozen=True)
class Ternary(Format):
    """``{-1, 0, 1}``. Stored in 2 bits, or five to a byte by `pack_base3`: 1.6 bits.

    Example:
        >>> Ternary().nearest(jnp.array([-3.0, 0.5, 0.6]), -1.0, 1.0).tolist()
        [-1.0, 0.0, 1.0]
    """

    @property
    def name(self) -> str:
        return "ternary"

    @property
    def bits(self) -> int:
        return 2

    @property
    def low(self) -> float:
        return -1.0

    @property
    def high(self) -> float:
        return 1.0

    @property
    def is_integer(self) -> bool:
        return True

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
        return levels.astype(jnp.int8)

    def decode(self, codes: Shaped[Array, "..."]) -> Float[Array, "..."]:
        return codes.astype(jnp.float32)


def pack_base3(codes: Int8[Array, "... length"]) -> UInt8[Array, "... bytes"]:
    """Returns ternary codes five to a byte along the last axis: byte = ``sum (c[i] + 1) 3**i``; 243 of 256 values used.

    The end is padded with code -1 (digit 0).

    Args:
        codes: int8 in {-1, 0, 1}.

    Returns:
        uint8, ``ceil(length / 5)`` bytes.

    Example:
        >>> pack_base3(jnp.array([-1, 0, 1, 1, 0, 1], jnp.int8)).tolist()
        [156, 2]
    """
    length = codes.shape[-1]
    digits = jnp.pad((codes + jnp.int8(1)).astype(jnp.uint8), [(0, 0)] * (codes.ndim - 1) + [(0, -length % 5)])
    digits = digits.reshape(*codes.shape[:-1], -1, 5)
    return jnp.sum(digits * jnp.asarray(_POWERS, jnp.uint8), axis=-1, dtype=jnp.uint8)


def unpack_base3(packed: UInt8[Array, "... bytes"], length: int) -> Int8[Array, "... length"]:
    """Returns the codes of `pack_base3`.

    Args:
        packed: uint8.
        length: codes along the last axis.

    Raises:
        ValueError: if ``length`` does not fit the bytes.
    """
    if -(-length // 5) != packed.shape[-1]:
        raise ValueError(f"{length} ternary codes take {-(-length // 5)} bytes, got {packed.shape[-1]}")
    digits = (packed[..., None] // jnp.asarray(_POWERS, jnp.uint8)) % jnp.uint8(3)
    return digits.reshape(*packed.shape[:-1], -1)[..., :length].astype(jnp.int8) - jnp.int8(1)


def mid_rise_of(spec: Spec) -> Spec:
    """Returns ``spec`` with the mid-rise grid of as many bits in place of a signed integer grid; others as they are.

    Example:
        >>> from lowbit.formats.lookup import specs
        >>> mid_rise_of(specs("w2")[0]).text
        'mid2/channel/sym'
    """
    numbers = spec.format
    is_plain = numbers.is_integer and numbers.is_signed and numbers.low == -(2.0 ** (numbers.bits - 1))
    if not is_plain or not spec.symmetric or numbers.bits > 8:
        return spec
    return dataclasses.replace(spec, format=MidRise(numbers.bits))


FORMATS = (*(MidRise(width) for width in range(1, 9)), Ternary())
"""The named formats."""


def named(name: str) -> Format | None:
    """Returns ``binary``, ``mid2`` to ``mid8``, ``ternary`` or None."""
    return {f.name: f for f in FORMATS}.get(name)
