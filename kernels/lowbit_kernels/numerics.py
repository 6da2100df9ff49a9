"""The arithmetic of the integer path, operation by operation: what every implementation reproduces bit for bit.

STABLE: the numbers. A simulation that calls these functions in this order equals every kernel to the last bit.

    inv  = 1 / s_x                                     one float32 division, on the scale
    q_x  = clip(round_nearest_even(x * inv) + z_x, lo, hi)
    acc  = sum_k (q_x - z_x) * (q_w - z_w)             int32, exact, per group of K
    f    = acc[0] * s_w[0];  f = f + acc[g] * s_w[g]   float32, g ascending, product and sum rounded separately
    y    = f * s_x                                     float32, then one cast to the output dtype

XLA on CPU contracts a product and a sum into one fused operation wherever it fuses them, which rounds once
instead of twice. `rounded_product` stops that. Float32 subnormals are flushed to zero, as XLA does.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int8, Int32, Num, UInt8

from lowbit_kernels import checks

_INFINITY = 0x7F800000  # its bits in float32
FLOAT_MAX = float(np.finfo(np.float32).max)
FP8_MAX = 448.0  # of float8_e4m3fn
TINY = float(np.finfo(np.float32).tiny)  # 2**-126, the smallest scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StaticActivation:
    """A calibrated grid for the activations: `x ~ (q - zero) * scale`, `q` in `[lo, hi]`.

    Attributes:
        scale: float32 scalar, or one per row with the shape `x.shape[:-1]`.
        zero: integer scalar, in units of codes.
        lo: smallest code, static; -128 <= lo (signed) or 0 <= lo (unsigned).
        hi: largest code, static; hi <= 127 (signed) or hi <= 255 (unsigned).
    """

    scale: Any
    zero: Any = 0
    lo: int = dataclasses.field(default=-128, metadata={"static": True})
    hi: int = dataclasses.field(default=127, metadata={"static": True})


def check_activation(activation: StaticActivation, rows: tuple[int, ...]) -> None:
    """Raises ValueError or TypeError where the grid does not fit 8-bit codes or the scale does not fit the rows of x."""
    lo = checks.integer("StaticActivation.lo", activation.lo)
    hi = checks.integer("StaticActivation.hi", activation.hi)
    checks.number("StaticActivation.scale", activation.scale)
    checks.number("StaticActivation.zero", activation.zero, is_integer=True)
    if not (lo < hi and ((-128 <= lo and hi <= 127) or (0 <= lo and hi <= 255))):
        raise ValueError(f"StaticActivation codes [{lo}, {hi}] must lie in [-128, 127] or in [0, 255]")
    shape = jnp.shape(activation.scale)
    if shape not in ((), rows):
        raise ValueError(f"StaticActivation.scale must be a scalar or have x's row shape {rows}, got shape {shape}")
    if jnp.shape(activation.zero) != ():
        raise ValueError(f"StaticActivation.zero must be a scalar, got shape {jnp.shape(activation.zero)}")


def rounded_product(a: Float32[Array, "..."], b: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """`a * b` in float32, rounded before anything consumes it; an overflow saturates at the largest float32.

    The clamp is what keeps XLA from contracting the product with a following sum. NaN passes. Either may be a number.

    Raises:
        TypeError: neither an array nor a number.
        ValueError: shapes that do not broadcast.
    """
    checks.number("rounded_product: a", a)
    checks.number("rounded_product: b", b)
    left, right = jnp.shape(a), jnp.shape(b)
    if any(m != n and 1 not in (m, n) for m, n in zip(left[::-1], right[::-1], strict=False)):
        raise ValueError(f"rounded_product: a and b must broadcast, got shapes {left} and {right}")
    return lax.clamp(-FLOAT_MAX, a * b, FLOAT_MAX)


def quantize_static(
    x: Float[Array, "... in"], activation: StaticActivation
) -> Int8[Array, "..."] | UInt8[Array, "..."]:
    """Codes of `x` on a calibrated grid: int8, or uint8 where `hi > 127`.

    Values outside the grid, infinities included, take the end code; NaN takes the code of 0.0.

    Raises:
        ValueError: a grid beyond 8 bits, or a scale that is neither one nor one a row.
        TypeError: x is no float array, or the grid no `StaticActivation`.
    """
    x = checks.array("quantize_static: x", x, "float")
    checks.instance(
        "quantize_static: activation", activation, StaticActivation, "StaticActivation(scale, zero, lo, hi)"
    )
    check_activation(activation, x.shape[:-1])
    return static_codes(x, activation)


def static_codes(x: Array, activation: StaticActivation, *, clears_nan: bool = True) -> Array:
    """`quantize_static` of what was checked; the codes of NaN are any where a kernel has no use for them and ``clears_nan`` is False."""
    scale = jnp.asarray(activation.scale, jnp.float32)
    inverse = lax.div(jnp.ones_like(scale), scale)
    inverse = inverse[..., None] if inverse.ndim else inverse
    steps = lax.round(x.astype(jnp.float32) * inverse, lax.RoundingMethod.TO_NEAREST_EVEN)
    if clears_nan:
        steps = jnp.where(jnp.isnan(steps), jnp.zeros_like(steps), steps)
    zero = jnp.asarray(activation.zero).astype(jnp.float32)
    codes = lax.clamp(float(activation.lo), steps + zero, float(activation.hi))
    return codes.astype(jnp.uint8 if activation.hi > 127 else jnp.int8)


def quantize_dynamic(x: Float[Array, "... in"]) -> tuple[Int8[Array, "... in"], Float32[Array, "..."]]:
    """int8 codes of each row of `x` and the scale of the row, `absmax * float32(1/127)`.

    An all-zero row has scale 1; no scale is below 2**-126. A row with an infinity or NaN has scale NaN and codes 0,
    so its output is NaN: loud, and confined to the row.

    Raises:
        TypeError: x is no float array.
        ValueError: x has no axis.
    """
    x = _rows("quantize_dynamic", x)
    scale = dynamic_scale(x)
    return quantize_static(x, StaticActivation(scale)).astype(jnp.int8), scale


def quantize_fp8(x: Float[Array, "... in"]) -> tuple[Float[Array, "... in"], Float32[Array, "..."]]:
    """float8_e4m3fn codes of each row of `x` and the scale of the row, `absmax * float32(1/448)`, as in `quantize_dynamic`.

    Rounded to nearest even once, from float32. A row with an infinity or NaN has scale NaN and codes 0.

    Raises:
        TypeError: x is no float array.
        ValueError: x has no axis.
    """
    x = _rows("quantize_fp8", x)
    scale = dynamic_scale(x, FP8_MAX)
    steps = x.astype(jnp.float32) * lax.div(jnp.ones_like(scale), scale)[..., None]
    steps = jnp.where(jnp.isnan(steps), jnp.zeros_like(steps), steps)
    return lax.clamp(-FP8_MAX, steps, FP8_MAX).astype(jnp.float8_e4m3fn), scale


def _rows(what: str, x: Any) -> Array:
    x = checks.array(f"{what}: x", x, "float")
    if not x.ndim:
        raise ValueError(f"{what}: x must have rows (..., K), got shape ()")
    return x


def dynamic_scale(x: Float[Array, "... in"], largest: float = 127.0) -> Float32[Array, "..."]:
    """The scale of each row of `x` that puts its largest magnitude at the code `largest`."""
    return scale_of_largest(largest_of_rows(x), largest)


def largest_of_rows(x: Float[Array, "... in"]) -> Float32[Array, "..."]:
    """The largest magnitude of each row of `x`; infinity where there is a NaN.

    Magnitudes of floats are ordered as their bits are, NaN above all: the maximum is of integers, since XLA:CPU drops NaN
    from a maximum of floats that it fuses (jax 0.10).
    """
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) & 0x7FFFFFFF
    return lax.bitcast_convert_type(jnp.minimum(jnp.max(bits, axis=-1), _INFINITY), jnp.float32)


def scale_of_largest(absmax: Float32[Array, "..."], largest: float = 127.0) -> Float32[Array, "..."]:
    """`dynamic_scale` of rows whose largest magnitude is known."""
    scale = jnp.maximum(absmax * jnp.float32(1 / largest), jnp.float32(TINY))
    scale = jnp.where(absmax == 0, jnp.ones_like(scale), scale)
    # Infinity less infinity: of a select with the constant NaN, a compiler may compute what follows for the constant alone.
    return jnp.where(jnp.isfinite(absmax), scale, absmax - absmax)


def nan_where(mask: Bool[Array, "..."], x: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """`x` with NaN where the mask, which broadcasts against it, is true.

    The NaN is made of the bits of `x`: of a select with the constant NaN, LLVM computes what follows for the constant alone,
    and an exponential of it is undefined there.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return lax.bitcast_convert_type(jnp.where(mask, bits | jnp.uint32(0x7FC00000), bits), jnp.float32)


def scale_groups(
    acc: Int32[Array, "groups rows out"], scales: Float[Array, "groups out"]
) -> Float32[Array, "rows out"]:
    """`sum_g float(acc[g]) * scales[g]`, g ascending, each product and each sum rounded to float32.

    Raises:
        TypeError: no array of integers, or none of floats.
        ValueError: shapes that do not fit together.
    """
    acc = checks.array("scale_groups: acc", acc, "integer", 3)
    scales = checks.array("scale_groups: scales", scales, "float", 2)
    if scales.shape != (acc.shape[0], acc.shape[2]) or not acc.shape[0]:
        raise ValueError(f"scale_groups: scales must be (G, N) of acc (G, M, N) = {acc.shape}, got {scales.shape}")
    scales = scales.astype(jnp.float32)
    first = rounded_product(acc[0].astype(jnp.float32), scales[0])
    if acc.shape[0] == 1:
        return first

    def add(total: Array, term: tuple[Array, Array]) -> tuple[Array, None]:
        return total + rounded_product(term[0].astype(jnp.float32), term[1]), None

    return lax.scan(add, first, (acc[1:], scales[1:]))[0]


def activation_codes(
    x: Num[Array, "... in"], activation: str | StaticActivation
) -> tuple[Int8[Array, "... in"] | UInt8[Array, "... in"], Int32[Array, ""], Float32[Array, "..."]]:
    """(codes, zero, scale) of `x`: quantized here if float, taken as they are if int8 or uint8."""
    if isinstance(activation, str):
        codes, scale = quantize_dynamic(x)
        return codes, jnp.zeros((), jnp.int32), scale
    scale = jnp.asarray(activation.scale, jnp.float32)
    zero = jnp.asarray(activation.zero).astype(jnp.int32)
    codes = x if jnp.issubdtype(x.dtype, jnp.integer) else quantize_static(x, activation)
    return codes, zero, scale
