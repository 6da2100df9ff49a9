"""`quant_conv`: a convolution on integer codes, in one or two dimensions, with the matmul's numeric contract.

STABLE: `PackedConv`, `pack_conv`, `quant_conv`.

    acc[b, i, j, n] = sum over taps and inputs of (q_x - z_x) q_w        int32, exact; outside x, q_x = z_x
    y = (float(acc) * s_w[n]) * s_x                                       float32, each product rounded, then one cast
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Integer, Num

from lowbit_kernels import checks
from lowbit_kernels.cpu import conv as cpu
from lowbit_kernels.cpu.conv import PreparedConv
from lowbit_kernels.cpu.matmul import check_config
from lowbit_kernels.cpu.tail import NO_TAIL, Results, Tail
from lowbit_kernels.layout import AnyArray, pack_codes, packed_length, unpack_codes
from lowbit_kernels.numerics import (
    StaticActivation,
    activation_codes,
    check_activation,
    nan_where,
    quantize_dynamic,
    rounded_product,
)
from lowbit_kernels.windows import Layout, windows_of

NAMES = ("cpu", "reference")
KERNELS = {"HWIO": (0, 1, 2, 3), "OIHW": (2, 3, 1, 0), "WIO": (0, 1, 2), "OIW": (2, 1, 0)}  # to spatial, I, O


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedConv:
    """Packed symmetric weights `(KH, KW, I, O)` of a convolution.

    Attributes:
        codes: uint8, canonical layout along `axis`.
        scales: `(O,)` float32, one an output channel.
        bits, signed: of a code.
        kernel: `(KH, KW, I, O)`, in codes; I is the inputs of one feature group.
        axis: the packed axis: 2 (I), or 3 (O) for depthwise kernels, whose I is 1.
    """

    codes: Any
    scales: Any
    bits: int = dataclasses.field(metadata={"static": True})
    signed: bool = dataclasses.field(default=True, metadata={"static": True})
    kernel: tuple[int, int, int, int] = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(metadata={"static": True})


def pack_conv(
    codes: Integer[AnyArray, "..."],
    scales: Float[AnyArray, " out"],
    *,
    bits: int,
    signed: bool = True,
    layout: str = "HWIO",
) -> PackedConv:
    """Packed form of codes with one scale an output channel.

    Args:
        codes: integers, in the order of `layout`.
        scales: float32 `(O,)`.
        bits: of a code.
        signed: codes are two's complement.
        layout: "HWIO" or "OIHW"; "WIO" or "OIW" in one dimension. Brought to HWIO here, once.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
        TypeError: what is no array, no integer or no flag.
    """
    checks.word("pack_conv: layout", layout, tuple(KERNELS))
    checks.integer("pack_conv: bits", bits, 1, 8)
    checks.flag("pack_conv: signed", signed)
    codes = checks.array("pack_conv: codes", codes, "integer")
    if codes.ndim != len(layout):
        raise ValueError(f"pack_conv: codes must be {layout}, got shape {codes.shape}")
    codes = codes.transpose(KERNELS[layout])
    codes = codes[None] if codes.ndim == 3 else codes
    shape = codes.shape[0], codes.shape[1], codes.shape[2], codes.shape[3]
    axis = 3 if shape[2] == 1 else 2
    scales = checks.array("pack_conv: scales", scales)
    if scales.shape != shape[3:] or scales.dtype != jnp.float32:
        raise ValueError(
            f"pack_conv: scales of codes {layout} must be float32 ({shape[3]},), got {scales.dtype} {scales.shape}"
        )
    return PackedConv(
        codes=pack_codes(codes, bits, axis), scales=scales, bits=bits, signed=signed, kernel=shape, axis=axis
    )


def conv_codes(packed: PackedConv) -> Array:
    """HWIO codes of the kernel, int8 (uint8 for unsigned codes of 8 bits)."""
    check_conv(packed)
    return unpack_codes(packed.codes, packed.bits, packed.kernel[packed.axis], packed.axis, packed.signed)


def dequantize_conv(packed: PackedConv | PreparedConv) -> Array:
    """W as float32 HWIO, prepared or not: one product of an exact level and its scale, rounded once.

    Raises:
        ValueError: fields that do not fit together.
        TypeError: `packed` is no convolution's.
    """
    check_conv(packed)
    codes, scales = cpu.restore(packed) if isinstance(packed, PreparedConv) else (conv_codes(packed), packed.scales)
    return codes.astype(jnp.float32) * scales


def check_conv(packed: Any) -> None:
    """Raises ValueError or TypeError where `packed` is no packed convolution, or one whose fields do not fit together."""
    checks.instance("packed", packed, (PackedConv, PreparedConv), "pack_conv or prepare_conv")
    if isinstance(packed, PreparedConv):
        cpu.check_prepared(packed)
        return
    bits = checks.integer("PackedConv.bits", packed.bits, 1, 8)
    checks.flag("PackedConv.signed", packed.signed)
    expected = list(checks.integers("PackedConv.kernel", packed.kernel, 4, 0))
    axis = checks.integer("PackedConv.axis", packed.axis, 2, 3)
    expected[axis] = packed_length(expected[axis], bits)
    for name, wanted, dtype in (("codes", tuple(expected), "uint8"), ("scales", tuple(packed.kernel[3:]), "float32")):
        x = getattr(packed, name)
        checks.described(f"PackedConv.{name}", x)
        if x.shape != wanted or x.dtype.name != dtype:
            raise ValueError(f"PackedConv.{name} must be {dtype} {wanted}, got {x.dtype} {x.shape}")


def prepare_conv(packed: PackedConv, *, feature_group_count: int = 1) -> PreparedConv:
    """`packed` in the CPU kernels' order, once; pure.

    Raises:
        ValueError: outputs that do not divide into the groups, or fields that do not fit together.
        TypeError: `packed` is no `PackedConv`, or the number of groups no integer.
    """
    checks.instance("packed", packed, PackedConv, "pack_conv")
    check_conv(packed)
    checks.integer("prepare_conv: feature_group_count", feature_group_count, 1)
    if packed.kernel[3] % feature_group_count:
        raise ValueError(
            f"prepare_conv: {packed.kernel[3]} outputs do not divide into feature_group_count = {feature_group_count} groups"
        )
    return cpu.prepare(
        conv_codes(packed), packed.scales, bits=packed.bits, signed=packed.signed, groups=feature_group_count
    )


class Call(NamedTuple):
    """The static half of a convolution."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    out_dtype: str
    name: str
    config: Any
    x_channels_first: bool
    y_channels_first: bool
    keeps_nan: bool


def quant_conv(
    x: Num[Array, "..."],
    packed: PackedConv | PreparedConv,
    *,
    activation: StaticActivation | str,
    strides: tuple[int, ...] | None = None,
    padding: Any = "SAME",
    rhs_dilation: tuple[int, ...] | None = None,
    feature_group_count: int = 1,
    out_dtype: Any = None,
    layout: str | None = None,
    implementation: str | None = None,
    config: Any = None,
    keeps_nan: bool = False,
) -> Float[Array, "..."]:
    """Convolution of `x` with packed weights; the border is padded with the zero point, that is with 0.0.

    Args:
        x: float32, bfloat16 or float16; or int8/uint8 codes on the grid of `activation`.
        packed: a `PackedConv`, or the same `prepare_conv`ed once for the CPU kernel.
        activation: one scale and zero for the tensor; the zero must be a code, `lo <= zero <= hi`. With codes the scale
            may be `(batch, height, width)`: the same number everywhere, or NaN at positions whose windows become NaN; or
            those with planes of channels (`fused.py`). Or "int8", of float x: symmetric, the scale of every example by its own largest magnitude, as
            `quantize_dynamic` of its values in one row.
        strides: as in `jax.lax.conv_general_dilated`, one a spatial axis; default 1.
        padding: the same; "SAME", "VALID" or pairs of positions.
        rhs_dilation: the same; default 1.
        feature_group_count: the same.
        out_dtype: default x's dtype, float32 for codes.
        layout: of x and of the result: "NHWC" or "NCHW"; "NWC" or "NCW" in one dimension. Default: channels last.
        implementation: "cpu", "reference" or None for the first that can run.
        config: `CpuConfig` for "cpu".
        keeps_nan: of float x: a result is NaN that sums over a NaN. Otherwise NaN takes the code of 0.0.

    Returns:
        `(batch, height, width, O)` of `out_dtype` (in `layout`), the same to the last bit in every implementation.

    Works under `jit` and `vmap`. Not differentiable: train with the simulation.

    Raises:
        ValueError: what does not fit together.
        TypeError: what is no array, no packed convolution, no dtype, no integer or no flag.
        NotImplementedError: the named implementation cannot run this; the message says why.
    """
    call, x, shape, axes = conv_call(
        x, packed, activation=activation, strides=strides, padding=padding, rhs_dilation=rhs_dilation,
        feature_group_count=feature_group_count, out_dtype=out_dtype, layout=layout, implementation=implementation, config=config,
        keeps_nan=keeps_nan,
    )  # fmt: skip
    value = run_conv(call, x, packed, activation, shape, NO_TAIL).value.astype(call.out_dtype)
    return lax.squeeze(value, (axes.height,)) if axes.flat else value


def conv_call(
    x: Array,
    packed: PackedConv | PreparedConv,
    *,
    activation: StaticActivation | str,
    strides: tuple[int, ...] | None = None,
    padding: Any = "SAME",
    rhs_dilation: tuple[int, ...] | None = None,
    feature_group_count: int = 1,
    out_dtype: Any = None,
    layout: str | None = None,
    implementation: str | None = None,
    config: Any = None,
    keeps_nan: bool = False,
) -> tuple[Call, Array, tuple[int, int, int, int], Layout]:
    """The checked call, x in two dimensions, the shape `(batch, height, width, O)` of the result, and the layout."""
    x = checks.array("quant_conv: x", x, "float or code")
    check_conv(packed)
    checks.flag("quant_conv: keeps_nan", keeps_nan)
    x, w = windows_of(
        "quant_conv", x, packed.kernel, feature_group_count, layout=layout, strides=strides, padding=padding,
        rhs_dilation=rhs_dilation,
    )  # fmt: skip
    batch, height, width = (x.shape[0], *x.shape[2:]) if w.first else x.shape[:3]
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    if isinstance(activation, StaticActivation):
        if jnp.shape(activation.scale) and floating:
            raise ValueError("quant_conv: activation of float x must have one scale for the tensor")
        rows = (batch, width) if w.axes.flat else (batch, height, width)
        by_channel = jnp.ndim(activation.scale) == 4 and not w.axes.flat
        channels = x.shape[1 if w.first else -1]
        check_activation(activation, (2 + -(-channels // 32), *rows) if by_channel else rows)
    elif not isinstance(activation, str) or activation != "int8" or not floating:
        got = f"{checks.kind_of(activation)} with {x.dtype}"
        raise ValueError(f'quant_conv: activation must be a StaticActivation, or "int8" with float x, got {got}')
    out_dtype = out_dtype if out_dtype is not None else x.dtype if floating else jnp.float32
    out_name = checks.float_dtype("quant_conv: out_dtype", out_dtype)
    reasons = {
        "cpu": cpu.supports(packed, feature_group_count, w.padding, jax.default_backend()),
        "reference": "a prepared kernel is in the CPU's order" if isinstance(packed, PreparedConv) else None,
    }
    if implementation is None:
        usable = [name for name in NAMES if reasons[name] is None]
        if not usable:
            raise NotImplementedError(f"quant_conv: no implementation can run this: {reasons}")
        implementation = usable[0]
    if not isinstance(implementation, str) or implementation not in NAMES:
        got = checks.kind_of(implementation)
        raise ValueError(f"quant_conv: implementation {got} is unknown; the names are {NAMES}")
    if implementation == "cpu":
        check_config(config)
    if reasons[implementation] is not None:
        raise NotImplementedError(f"quant_conv: {implementation!r} cannot run this: {reasons[implementation]}")
    call = Call(
        w.strides, w.padding, w.dilation, feature_group_count, out_name, implementation, config, w.first, w.first,
        keeps_nan and floating,
    )  # fmt: skip
    return call, x, w.shape, w.axes


def run_conv(
    call: Call,
    x: Array,
    packed: PackedConv | PreparedConv,
    activation: StaticActivation | str,
    shape: tuple[int, int, int, int],
    tail: Tail,
) -> Results:
    """The convolution in two dimensions. Only "cpu" takes a tail."""
    if isinstance(activation, StaticActivation) and jnp.ndim(activation.scale) == 2:  # marks of one dimension
        activation = dataclasses.replace(activation, scale=jnp.expand_dims(activation.scale, 1))
    if call.name == "cpu":
        if isinstance(packed, PackedConv):
            packed = prepare_conv(packed, feature_group_count=call.groups)
        return cpu.run(x, packed, activation, shape, call, tail)
    assert isinstance(packed, PackedConv)
    none = jnp.zeros((0,), jnp.float32)
    return Results(_run_reference(call, x, packed, activation), none, none)


def nan_channels(marks: Array, channels: int) -> tuple[Array, Array]:
    """Which values were NaN, `(batch, height, width, channels)`, and the scale, of marks of channels (`fused.py`)."""
    at = jnp.arange(channels)
    words = lax.bitcast_convert_type(marks[2:], jnp.uint32)
    found = (words[at // 32] >> (at % 32).astype(jnp.uint32)[:, None, None, None]) & 1
    marked = jnp.isnan(marks[0])
    scale = jnp.max(jnp.where(marked, marks[1], marks[0])) if marked.size else jnp.float32(1)
    return jnp.moveaxis(found > 0, 0, -1) & marked[..., None], scale


def channel_marks(value: Array, scale: Array) -> Array:
    """The marks of channels of a value `(batch, height, width, channels)`: what `nan_channels` reads."""
    is_nan = jnp.pad(jnp.isnan(value), [(0, 0)] * 3 + [(0, -value.shape[-1] % 32)])
    bits = is_nan.reshape(*value.shape[:-1], -1, 32).astype(jnp.uint32) << jnp.arange(32, dtype=jnp.uint32)
    words = lax.bitcast_convert_type(jnp.moveaxis(jnp.sum(bits, axis=-1, dtype=jnp.uint32), -1, 0), jnp.float32)
    scales = jnp.broadcast_to(scale, value.shape[:-1])
    return jnp.concatenate([jnp.stack([nan_where(jnp.any(is_nan, axis=-1), scale), scales]), words])


def _run_reference(call: Call, x: Array, packed: PackedConv, activation: StaticActivation | str) -> Array:
    x = jnp.moveaxis(x, 1, -1) if call.x_channels_first else x
    if isinstance(activation, str):
        codes, scale = quantize_dynamic(x.reshape(x.shape[0], -1))
        codes, zero, scale = codes.reshape(x.shape), jnp.int32(0), scale[:, None, None, None]
    else:
        codes, zero, scale = activation_codes(x, activation)

    def convolution(left: Array, right: Array, groups: int) -> Array:
        return lax.conv_general_dilated(
            left,
            right,
            call.strides,
            call.padding,
            rhs_dilation=call.dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
            preferred_element_type=jnp.int32,
        )

    acc = convolution(codes.astype(jnp.int32) - zero, conv_codes(packed).astype(jnp.int32), call.groups)
    is_nan = None
    if (
        isinstance(activation, StaticActivation) and scale.ndim == 4
    ):  # marks of channels; of examples there are scales alone
        is_nan, scale = nan_channels(scale, x.shape[-1])
    elif scale.ndim == 3:  # marks: NaN in every window that holds one
        marked = jnp.isnan(scale).astype(jnp.int32)[..., None]
        found = convolution(marked, jnp.ones((*packed.kernel[:2], 1, 1), jnp.int32), 1)
        scale = nan_where(found > 0, jnp.nanmax(scale) if scale.size else jnp.float32(1))
    value = rounded_product(rounded_product(acc.astype(jnp.float32), packed.scales), scale)
    if call.keeps_nan:
        is_nan = jnp.isnan(x)
    if is_nan is not None:
        marked = is_nan.astype(jnp.int32)
        ones = jnp.ones((*packed.kernel[:3], packed.kernel[3]), jnp.int32)
        value = nan_where(convolution(marked, ones, call.groups) > 0, value)
    value = value.astype(call.out_dtype)
    return jnp.moveaxis(value, -1, 1) if call.y_channels_first else value
