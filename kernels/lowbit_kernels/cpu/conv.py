"""The native convolution: the physical order of its weights, what it supports, and the call."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit_kernels import checks
from lowbit_kernels.cpu import library
from lowbit_kernels.cpu.arena import reshaped
from lowbit_kernels.cpu.matmul import check_config
from lowbit_kernels.cpu.prepare import PreparedMatrix, block_inputs, stored_bits
from lowbit_kernels.cpu.prepare import prepare as prepare_matrix
from lowbit_kernels.cpu.prepare import restore as restore_matrix
from lowbit_kernels.cpu.tail import NO_TAIL, Results, Tail, given, grouped, scale_of, zero_of
from lowbit_kernels.layout import unpack_codes
from lowbit_kernels.matrix import pack_matrix
from lowbit_kernels.numerics import StaticActivation

MOST_TAPS = 258  # depthwise sums are carried in float32: 258 * 255 * 255 < 2**24


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedConv:
    """HWIO weights in the order the CPU kernel reads.

    Attributes:
        weights: uint8 blocks of `cpu/prepare.py`, `(groups * ceil(O / groups / 16), B, 64)`, over taps times inputs of
            each feature group in turn; depthwise: bytes of int8 `(KH KW, C)`.
        scales: float32 `(groups * ceil(O / groups / 16), 16)`; depthwise: `(ceil(O / 16), 16)`.
        sums: int32 like `scales`, sums of stored codes; zeros for depthwise.
        bits: of a code.
        signed: codes are two's complement.
        kernel: `(KH, KW, I, O)`.
        groups: feature groups.
        depthwise: one input and one output a group, and a body of its own.
    """

    weights: Any
    scales: Any
    sums: Any
    bits: int = dataclasses.field(metadata={"static": True})
    signed: bool = dataclasses.field(metadata={"static": True})
    kernel: tuple[int, int, int, int] = dataclasses.field(metadata={"static": True})
    groups: int = dataclasses.field(metadata={"static": True})
    depthwise: bool = dataclasses.field(metadata={"static": True})


def check_prepared(packed: PreparedConv) -> None:
    """Raises ValueError or TypeError where the arrays of `packed` do not fit its integers."""
    bits = checks.integer("PreparedConv.bits", packed.bits, 1, 8)
    checks.flag("PreparedConv.signed", packed.signed)
    checks.flag("PreparedConv.depthwise", packed.depthwise)
    height, width, inputs, out = checks.integers("PreparedConv.kernel", packed.kernel, 4, 0)
    groups = checks.integer("PreparedConv.groups", packed.groups, 1)
    table = (groups * -(-(out // groups) // 16), 16)
    weights = (table[0], -(-height * width * inputs // block_inputs(bits)), 64)
    if packed.depthwise:
        table, weights = (-(-out // 16), 16), (height * width, out)
    for name, wanted, dtype in (("weights", weights, "uint8"), ("scales", table, "float32"), ("sums", table, "int32")):
        x = getattr(packed, name)
        checks.described(f"PreparedConv.{name}", x)
        if x.shape != wanted or x.dtype.name != dtype:
            raise ValueError(f"PreparedConv.{name} must be {dtype} {wanted}, got {x.dtype} {x.shape}")


def is_depthwise(kernel: tuple[int, int, int, int], groups: int, bits: int, *, signed: bool) -> bool:
    """Whether the depthwise body runs: one input and output a group, few taps, codes that int8 holds."""
    one = groups > 1 and kernel[2] == 1 and kernel[3] == groups
    return one and kernel[0] * kernel[1] <= MOST_TAPS and (signed or bits < 8)


def prepare(codes: Array, scales: Array, *, bits: int, signed: bool, groups: int) -> PreparedConv:
    """HWIO codes and their scales in the CPU kernel's order; pure."""
    height, width, inputs, out = codes.shape
    depthwise = is_depthwise((height, width, inputs, out), groups, bits, signed=signed)
    table = grouped(scales, 1 if depthwise else groups)
    if depthwise:
        weights = jax.lax.bitcast_convert_type(codes.astype(jnp.int8), jnp.uint8).reshape(height * width, out)
        sums = jnp.zeros_like(table, jnp.int32)
    else:
        rows = codes.reshape(height * width * inputs, groups, out // groups)
        rows = jnp.pad(rows, ((0, 0), (0, 0), (0, -(out // groups) % 16))).reshape(rows.shape[0], -1)
        ones = jnp.ones((1, rows.shape[1]), jnp.float32)
        weights = prepare_matrix(pack_matrix(rows, ones, bits=bits, signed=signed), column_sums=False).blocks
        offset = 1 << (bits - 1) if signed else 0
        sums = grouped(jnp.sum(codes.astype(jnp.int32) + offset, axis=(0, 1, 2), dtype=jnp.int32), groups)
    return PreparedConv(
        weights=weights,
        scales=table,
        sums=sums,
        bits=bits,
        signed=signed,
        kernel=(height, width, inputs, out),
        groups=groups,
        depthwise=depthwise,
    )


def restore(packed: PreparedConv) -> tuple[Array, Array]:
    """HWIO codes and their scales, `(O,)`: the inverse of `prepare`, exact."""
    check_prepared(packed)
    height, width, inputs, out = packed.kernel
    if packed.depthwise:
        codes = jax.lax.bitcast_convert_type(packed.weights, jnp.int8)
        return codes.reshape(packed.kernel), packed.scales.reshape(-1)[:out]
    taps, many = height * width * inputs, out // packed.groups
    columns = packed.weights.shape[0] * 16
    ones = jnp.ones((packed.weights.shape[0], 1, 16), jnp.float32)
    matrix = PreparedMatrix(
        blocks=packed.weights, scales=ones, zeros=None, column_sums=None, codebook=None,
        bits=packed.bits, signed=packed.signed, length=taps, group=max(taps, 1), out=columns,
    )  # fmt: skip
    codes = unpack_codes(restore_matrix(matrix).codes, packed.bits, taps, axis=0, signed=packed.signed)
    codes = codes.reshape(taps, packed.groups, -1)[:, :, :many]
    return codes.reshape(packed.kernel), packed.scales.reshape(packed.groups, -1)[:, :many].reshape(out)


def supports(packed: Any, groups: int, padding: tuple[tuple[int, int], ...], platform: str) -> str | None:
    """None where the native library runs the convolution, else the reason."""
    if platform != "cpu":
        return f"runs on CPUs, not on {platform}"
    if library.status().reason:
        return library.status().reason
    if isinstance(packed, PreparedConv) and packed.groups != groups:
        return f"the kernel was prepared for {packed.groups} feature groups"
    if any(low < 0 or high < 0 for low, high in padding):
        return "negative padding"
    return None


def run(
    x: Array,
    packed: PreparedConv,
    activation: StaticActivation | str,
    shape: tuple[int, ...],
    call: Any,
    tail: Tail = NO_TAIL,
) -> Results:
    """The native call; `shape` is `(batch, OH, OW, O)`. x and results are in the layouts that `call` names."""
    is_dynamic = isinstance(activation, str)
    activation = StaticActivation(jnp.ones((), jnp.float32)) if isinstance(activation, str) else activation
    config = check_config(call.config)
    if x.dtype == jnp.float16:
        x = x.astype(jnp.float32)
    native = "bfloat16" if call.out_dtype == "bfloat16" else "float32"
    batch, height, width, out = shape
    spatial = (*((2 + -(-out // 32),) if tail.by_channel else ()), batch, height, width)
    stored = (batch, out, height, width) if call.y_channels_first else shape
    empty = (0, *stored[1:])
    scale = scale_of(activation)
    scale = scale if scale.ndim else reshaped(scale, (1,))
    x_shape = (x.shape[0], *x.shape[2:], x.shape[1]) if call.x_channels_first else x.shape
    results = [
        *tail.results(native, stored, empty, spatial, (0, 0, 0)),
        jax.ShapeDtypeStruct((scratch_bytes(x_shape, packed, shape, call.strides, call.dilation),), jnp.uint8),
    ]
    steps, next_scale, next_zero = tail.operands()
    operands, bits, places = given(
        [x, (None if is_dynamic else scale, 1), (None if is_dynamic else zero_of(activation), 1), packed.weights,
         packed.scales, (None if packed.depthwise else packed.sums, 2), (steps, 4), (next_scale, 8), (next_zero, 8), None,
         (tail.residual, 16)]
    )  # fmt: skip
    numbers = (
        bits, packed.groups, packed.depthwise, activation.lo, activation.hi,
        8 if packed.depthwise else stored_bits(packed.bits), 1 << (packed.bits - 1) if packed.signed else 0,
        call.x_channels_first, call.y_channels_first, call.keeps_nan, is_dynamic, *tail.bounds(),
        library.isa_number(config.isa), 0 if config.threads is None else config.threads,
        *packed.kernel[:2], *call.strides, *call.dilation, *(low for low, _ in call.padding), *places,
    )  # fmt: skip
    native_call = jax.ffi.ffi_call(library.TARGETS["LowbitConvCall"], results, vmap_method="sequential")
    y, codes, marks, _ = native_call(*operands, config=np.asarray(numbers, np.int64), **tail.attributes())
    return Results(y, codes, marks)


def scratch_bytes(
    x_shape: tuple[int, ...], packed: Any, shape: tuple[int, ...], strides: tuple[int, ...], dilation: tuple[int, ...]
) -> int:
    """Bytes the kernel works in (`ScratchBytes` in cpp/core/conv.cpp)."""
    if 0 in shape:
        return 0
    height, width, inputs, out = packed.kernel
    lines, stride = shape[0] * shape[1], strides[0]
    windows = [(k - 1) * d + 1 for k, d in zip((height, width), dilation, strict=True)]
    padded = [(n - 1) * s + w for n, s, w in zip(shape[1:3], strides, windows, strict=True)]
    is_together = packed.groups == 1 and dilation[1] == 1
    runs, run = (height, width * inputs) if is_together else (height * width, inputs)
    words = packed.groups * -(-(out // packed.groups) // 16) * runs * -(-run // 2) * 64
    if packed.depthwise:
        held = windows[0] * padded[1] * x_shape[3] * 4
        return 64 + min(_MOST_SLOTS, lines) * (-(-held // 64) * 64 + 64)
    line = padded[1] * x_shape[3] * (2 if words <= _MOST_WORD_BYTES else 1)
    most = min(lines, max(1, _CHUNK_BYTES // max(1, line * stride)))
    more = (most // shape[1] + 1) * max(0, windows[0] - stride)
    held = min((most - 1) * stride + windows[0] + more, shape[0] * padded[0]) * line
    span = block_inputs(packed.bits)
    length = -(-height * width * inputs // span) * span
    length = -(-length // 64) * 64 + 64
    rows = min(max(32, -(-((1 << 16) // length) // 32) * 32), -(-most * shape[2] // 32) * 32) + 16
    slot = -(-(-(-held // 64) * 64 + 64 + rows * (length + 12)) // 64) * 64
    return 64 + min(_MOST_SLOTS, lines) * slot + (words if words <= _MOST_WORD_BYTES else 0)


_MOST_SLOTS, _CHUNK_BYTES = 16, 1 << 18
"""Of scratch (`kMostSlots` and `kChunkBytes` in cpp/core/conv.cpp)."""
_MOST_WORD_BYTES = 1 << 18
"""Up to so many bytes of weights are widened to 16 bits in a call (`kMostWordBytes` in cpp/core/conv.cpp)."""
