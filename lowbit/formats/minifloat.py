"""Small floats: fp8 e4m3fn and e5m2, fp6 e2m3 and e3m2, fp4 e2m1.

Everything is integer arithmetic on the float32 bit pattern, so it is exact and the same on every backend; the tests
compare every code and every tie with `ml_dtypes`.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from lowbit.core.extremes import nan_where
from lowbit.core.powers import exponent, power_of_two
from lowbit.core.rounding import clip_between, nearest_even
from lowbit.core.spec import Format
from lowbit.formats.rounding import Round


@dataclasses.dataclass(frozen=True)
class Minifloat(Format):
    """Sign, ``exponent_bits``, ``mantissa_bits``; subnormals; saturating.

    Values above the largest finite level saturate, infinities too. The level of NaN is NaN; its code is NaN where the
    format has one (``e4m3``: 0x7F, ``e5m2``: 0x7E), that of zero where it has none. Codes are the IEEE-style bit
    fields in the low bits of a uint8; the infinities of ``e5m2`` (0x7C, 0xFC) are read and never written.

    Attributes:
        exponent_bits: width of the exponent field.
        fraction_bits: width of the mantissa field.
        bias: of the exponent field.
        top: the largest finite level.
        nan_code: the positive NaN that is written, or None.
        inf_code: positive infinity, or None.

    Reference: OCP Microscaling Formats (MX) v1.0, section 5.3; Micikevicius et al., FP8 formats for deep learning,
    2022, https://arxiv.org/abs/2209.05433, Table 1.

    Example:
        >>> named("fp4_e2m1").nearest(jnp.array([0.25, 0.75, 5.0, -9.0]), -6.0, 6.0).tolist()
        [0.0, 1.0, 4.0, -6.0]
    """

    exponent_bits: int
    fraction_bits: int
    bias: int
    top: float
    nan_code: int | None = None
    inf_code: int | None = None

    @property
    def name(self) -> str:
        return f"fp{self.bits}_e{self.exponent_bits}m{self.fraction_bits}"

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.fraction_bits

    @property
    def low(self) -> float:
        return -self.top

    @property
    def high(self) -> float:
        return self.top

    @property
    def is_integer(self) -> bool:
        return False

    @property
    def mantissa_bits(self) -> int:
        return self.fraction_bits

    @property
    def smallest(self) -> float:
        return 2.0 ** (1 - self.bias - self.fraction_bits)

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
        clipped = clip_between(x, low, high)
        # Half the spacing of the next binade never matters: 2**(e+1) is a level whatever rounds up to it.
        quantum = jnp.maximum(exponent(lax.stop_gradient(clipped)), 1 - self.bias) - self.fraction_bits
        return round(clipped * power_of_two(-quantum)) * power_of_two(quantum)

    def encode(self, levels: Float[Array, "..."]) -> Shaped[Array, "..."]:
        bits = lax.bitcast_convert_type(levels.astype(jnp.float32), jnp.int32)
        magnitude = bits & 0x7FFFFFFF
        normal = (magnitude >> (23 - self.fraction_bits)) - ((127 - self.bias) << self.fraction_bits)
        subnormal = (jnp.abs(levels) * np.float32(1.0 / self.smallest)).astype(jnp.int32)
        is_small = magnitude < ((128 - self.bias) << 23)
        code = jnp.where(is_small, subnormal, normal)
        code = jnp.where(magnitude > 0x7F800000, self.nan_code or 0, code)
        sign = (bits >> 31) & 1
        return (code | (sign << (self.bits - 1))).astype(jnp.uint8)

    def decode(self, codes: Shaped[Array, "..."]) -> Float[Array, "..."]:
        code = codes.astype(jnp.int32) & ((1 << self.bits) - 1)
        magnitude = code & ((1 << (self.bits - 1)) - 1)
        is_small = magnitude < (1 << self.fraction_bits)
        field = (magnitude << (23 - self.fraction_bits)) + ((127 - self.bias) << 23)
        normal = lax.bitcast_convert_type(field, jnp.float32)
        value = jnp.where(is_small, magnitude.astype(jnp.float32) * np.float32(self.smallest), normal)
        if self.inf_code is not None:
            value = jnp.where(magnitude == self.inf_code, jnp.float32(jnp.inf), value)
            value = nan_where(magnitude > self.inf_code, value)
        elif self.nan_code is not None:
            value = nan_where(magnitude == self.nan_code, value)
        return jnp.where(code != magnitude, -value, value)


FORMATS = (
    Minifloat(2, 1, 1, 6.0),
    Minifloat(2, 3, 1, 7.5),
    Minifloat(3, 2, 3, 28.0),
    Minifloat(4, 3, 7, 448.0, 0x7F),
    Minifloat(5, 2, 15, 57344.0, 0x7E, 0x7C),
)
"""Every float format."""


def named(name: str) -> Minifloat | None:
    """Returns the float format of this name, or None: ``fp4_e2m1``, ``fp8_e4m3``; ``fp4`` is short for ``fp4_e2m1``."""
    known = {f.name: f for f in FORMATS} | {"fp4": FORMATS[0], "fp8_e4m3fn": FORMATS[3]}
    return known.get(name)
