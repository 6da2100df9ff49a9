"""`quant_conv`: a 2-D convolution on integer codes, NHWC by HWIO, with the matmul's numeric contract.

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

from lowbit_kernels.cpu import conv as cpu
from lowbit_kernels.cpu.conv import PreparedConv
from lowbit_kernels.layout import AnyArray, pack_codes, packed_length, unpack_codes
from lowbit_kernels.numerics import StaticActivation, activation_codes, check_activation, rounded_product

NAMES = ("cpu", "reference")


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
    codes: Integer[AnyArray, "kh kw in out"], scales: Float[AnyArray, " out"], *, bits: int, signed: bool = True
) -> PackedConv:
    """Packed form of HWIO codes with one scale an output channel.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
    """
    shape = jnp.shape(codes)
    if len(shape) != 4:
        raise ValueError(f"pack_conv: codes must be HWIO (KH, KW, I, O), got shape {shape}")
    axis = 3 if shape[2] == 1 else 2
    scales = jnp.asarray(scales)
    if scales.shape != shape[3:] or scales.dtype != jnp.float32:
        raise ValueError(f"pack_conv: scales must be float32 ({shape[3]},), got {scales.dtype} {scales.shape}")
    return PackedConv(
        codes=pack_codes(codes, bits, axis), scales=scales, bits=bits, signed=signed, kernel=shape, axis=axis
    )


def conv_codes(packed: PackedConv) -> Array:
    """HWIO codes of the kernel, int8 (uint8 for unsigned codes of 8 bits)."""
    expected = packed_length(packed.kernel[packed.axis], packed.bits)
    if packed.codes.shape[packed.axis] != expected:
        raise ValueError(
            f"PackedConv.codes must have {expected} bytes along axis {packed.axis}, got {packed.codes.shape}"
        )
    return unpack_codes(packed.codes, packed.bits, packed.kernel[packed.axis], packed.axis, packed.signed)


def prepare_conv(packed: PackedConv, *, feature_group_count: int = 1) -> PreparedConv:
    """`packed` in the CPU kernels' order, once; pure. Takes dense (1 group) and depthwise kernels."""
    depthwise = feature_group_count > 1
    if depthwise and packed.kernel[2:] != (1, feature_group_count):
        raise ValueError(
            f"prepare_conv: {feature_group_count} groups need a depthwise kernel, got HWIO {packed.kernel}"
        )
    return cpu.prepare(conv_codes(packed), packed.scales, bits=packed.bits, signed=packed.signed, depthwise=depthwise)


class _Call(NamedTuple):
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    out_dtype: str
    name: str
    config: Any


def quant_conv(
    x: Num[Array, "batch height width in"],
    packed: PackedConv | PreparedConv,
    *,
    activation: StaticActivation,
    strides: tuple[int, int] = (1, 1),
    padding: Any = "SAME",
    rhs_dilation: tuple[int, int] = (1, 1),
    feature_group_count: int = 1,
    out_dtype: Any = None,
    implementation: str | None = None,
    config: Any = None,
) -> Float[Array, "batch out_height out_width out"]:
    """Convolution of NHWC `x` with packed HWIO weights; the border is padded with the zero point, that is with 0.0.

    Args:
        x: float32, bfloat16 or float16; or int8/uint8 codes on the grid of `activation`.
        packed: a `PackedConv`, or the same `prepare_conv`ed once for the CPU kernel.
        activation: one scale and zero for the tensor; the zero must be a code, `lo <= zero <= hi`.
        strides: as in `jax.lax.conv_general_dilated`.
        padding: the same; "SAME", "VALID" or pairs of positions.
        rhs_dilation: the same.
        feature_group_count: the same.
        out_dtype: default x's dtype, float32 for codes.
        implementation: "cpu", "reference" or None for the first that can run.
        config: `CpuConfig` for "cpu".

    Returns:
        `(batch, height, width, O)` of `out_dtype`, the same to the last bit in every implementation.

    Works under `jit` and `vmap`. Not differentiable: train with the simulation.

    Raises:
        ValueError: what does not fit together.
        NotImplementedError: the named implementation cannot run this; the message says why.
    """
    x = jnp.asarray(x)
    kernel = packed.kernel
    if x.ndim != 4 or x.shape[3] != kernel[2] * feature_group_count:
        raise ValueError(
            f"quant_conv: x must be NHWC with {kernel[2]} x {feature_group_count} channels for HWIO {kernel}, got {x.shape}"
        )
    if kernel[3] % feature_group_count:
        raise ValueError(f"quant_conv: {kernel[3]} outputs do not divide into {feature_group_count} feature groups")
    if not isinstance(activation, StaticActivation) or jnp.shape(activation.scale) != ():
        raise ValueError("quant_conv: activation must be a StaticActivation with one scale for the tensor")
    check_activation(activation, ())
    spatial = (x.shape[1], x.shape[2])
    window = tuple((k - 1) * d + 1 for k, d in zip(kernel[:2], rhs_dilation, strict=True))
    pads = lax.padtype_to_pads(spatial, window, strides, padding) if isinstance(padding, str) else padding
    pads = tuple((int(low), int(high)) for low, high in pads)
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    out_name = jnp.dtype(out_dtype if out_dtype is not None else x.dtype if floating else jnp.float32).name
    reasons = {
        "cpu": cpu.supports(packed, feature_group_count, pads, jax.default_backend()),
        "reference": "a prepared kernel is in the CPU's order" if isinstance(packed, PreparedConv) else None,
    }
    if implementation is None:
        usable = [name for name in NAMES if reasons[name] is None]
        if not usable:
            raise NotImplementedError(f"quant_conv: no implementation can run this: {reasons}")
        implementation = usable[0]
    if implementation not in NAMES:
        raise ValueError(f"quant_conv: implementation {implementation!r} is unknown; the names are {NAMES}")
    if reasons[implementation] is not None:
        raise NotImplementedError(f"quant_conv: {implementation!r} cannot run this: {reasons[implementation]}")
    call = _Call(tuple(strides), pads, tuple(rhs_dilation), feature_group_count, out_name, implementation, config)
    if implementation == "cpu" or isinstance(packed, PreparedConv):
        return _run_cpu(call, x, packed, activation)
    return _run_reference(call, x, packed, activation)


def _run_reference(call: _Call, x: Array, packed: PackedConv, activation: StaticActivation) -> Array:
    codes, zero, scale = activation_codes(x, activation)
    acc = lax.conv_general_dilated(
        codes.astype(jnp.int32) - zero,
        conv_codes(packed).astype(jnp.int32),
        call.strides,
        call.padding,
        rhs_dilation=call.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=call.groups,
        preferred_element_type=jnp.int32,
    )
    return rounded_product(rounded_product(acc.astype(jnp.float32), packed.scales), scale).astype(call.out_dtype)


def _run_cpu(call: _Call, x: Array, packed: PackedConv | PreparedConv, activation: StaticActivation) -> Array:
    if isinstance(packed, PackedConv):
        packed = prepare_conv(packed, feature_group_count=call.groups)
    heights = [
        (size + low + high - (k - 1) * d - 1) // s + 1
        for size, (low, high), k, d, s in zip(
            x.shape[1:3], call.padding, packed.kernel[:2], call.dilation, call.strides, strict=True
        )
    ]
    shape = (x.shape[0], max(heights[0], 0), max(heights[1], 0), packed.kernel[3])
    if 0 in shape or 0 in x.shape:
        return jnp.zeros(shape, call.out_dtype)
    return cpu.run(x, packed, activation, shape, call)
