"""The native convolution: the physical order of its weights, what it supports, and the call."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowbit_kernels.cpu import library
from lowbit_kernels.cpu.matmul import CpuConfig
from lowbit_kernels.cpu.prepare import block_inputs, stored_bits
from lowbit_kernels.cpu.prepare import prepare as prepare_matrix
from lowbit_kernels.matrix import pack_matrix
from lowbit_kernels.numerics import StaticActivation

MOST_TAPS = 258  # depthwise sums are carried in float32: 258 * 255 * 255 < 2**24


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedConv:
    """HWIO weights in the order the CPU kernel reads.

    Attributes:
        weights: uint8 blocks of `cpu/prepare.py` over taps times padded channels; depthwise: bytes of int8 `(KH KW, C)`.
        scales: `(ceil(O / 16), 16)` float32.
        sums: int32 like `scales`, sums of stored codes; zeros for depthwise.
        bits: of a code.
        signed: codes are two's complement.
        kernel: `(KH, KW, I, O)`.
        depthwise: one input a channel.
    """

    weights: Any
    scales: Any
    sums: Any
    bits: int = dataclasses.field(metadata={"static": True})
    signed: bool = dataclasses.field(metadata={"static": True})
    kernel: tuple[int, int, int, int] = dataclasses.field(metadata={"static": True})
    depthwise: bool = dataclasses.field(metadata={"static": True})


def prepare(codes: Array, scales: Array, *, bits: int, signed: bool, depthwise: bool) -> PreparedConv:
    """HWIO codes and their scales in the CPU kernel's order; pure."""
    height, width, inputs, out = codes.shape
    table = jnp.pad(scales, (0, -out % 16)).reshape(-1, 16)
    if depthwise:
        weights = jax.lax.bitcast_convert_type(codes.astype(jnp.int8), jnp.uint8).reshape(height * width, out)
        sums = jnp.zeros_like(table, jnp.int32)
    else:
        # A tap's channels fill whole blocks. Padded inputs are code 0 of x: the weight there does not matter.
        pad = -inputs % block_inputs(bits)
        rows = jnp.pad(codes, ((0, 0), (0, 0), (0, pad), (0, 0))).reshape(-1, out)
        matrix = prepare_matrix(pack_matrix(rows, scales[None], bits=bits, signed=signed), column_sums=False)
        weights = matrix.blocks
        offset = 1 << (bits - 1) if signed else 0
        sums = jnp.sum(codes.astype(jnp.int32) + offset, axis=(0, 1, 2), dtype=jnp.int32)
        sums = jnp.pad(sums, (0, -out % 16)).reshape(-1, 16)
    return PreparedConv(
        weights=weights,
        scales=table,
        sums=sums,
        bits=bits,
        signed=signed,
        kernel=(height, width, inputs, out),
        depthwise=depthwise,
    )


def supports(packed: Any, groups: int, padding: tuple[tuple[int, int], ...], platform: str) -> str | None:
    """None where the native library runs the convolution, else the reason."""
    height, width, inputs, out = packed.kernel
    if platform != "cpu":
        return f"runs on CPUs, the default platform is {platform}"
    if library.status().reason:
        return library.status().reason
    if isinstance(packed, PreparedConv) and packed.depthwise != (groups > 1):
        return f"the kernel was prepared for {'depthwise' if packed.depthwise else 'one feature group'}"
    if groups > 1 and (inputs != 1 or out != groups):
        return f"takes one feature group or one input and output a group, got {groups} groups of HWIO {packed.kernel}"
    if groups > 1 and (height * width > MOST_TAPS or (packed.bits == 8 and not packed.signed)):
        return f"depthwise takes at most {MOST_TAPS} taps and signed codes"
    if any(low < 0 or high < 0 for low, high in padding):
        return "negative padding"
    return None


def run(x: Array, packed: PreparedConv, activation: StaticActivation, shape: tuple[int, ...], call: Any) -> Array:
    """The native call: `(batch, height, width, O)` of `call.out_dtype`."""
    config = CpuConfig() if call.config is None else call.config
    if not isinstance(config, CpuConfig):
        raise ValueError(f"implementation 'cpu' takes config=CpuConfig(...), got {type(config).__name__}")
    if x.dtype == jnp.float16:
        x = x.astype(jnp.float32)
    native = "bfloat16" if call.out_dtype == "bfloat16" else "float32"
    scratch = _scratch_bytes(x.shape, packed, shape, call)
    kernel = packed.kernel[:2]
    result, _ = jax.ffi.ffi_call(
        library.TARGETS["LowbitConv"],
        (jax.ShapeDtypeStruct(shape, native), jax.ShapeDtypeStruct((scratch,), jnp.uint8)),
        vmap_method="sequential",
    )(
        x,
        jnp.reshape(jnp.asarray(activation.scale, jnp.float32), (1,)),
        jnp.reshape(jnp.asarray(activation.zero).astype(jnp.int32), (1,)),
        packed.weights,
        packed.scales,
        packed.sums,
        kernel=np.asarray(kernel, np.int64),
        stride=np.asarray(call.strides, np.int64),
        dilation=np.asarray(call.dilation, np.int64),
        padding=np.asarray([low for low, _ in call.padding], np.int64),
        depthwise=np.int64(packed.depthwise),
        lo=np.int64(activation.lo),
        hi=np.int64(activation.hi),
        bits=np.int64(8 if packed.depthwise else stored_bits(packed.bits)),
        offset=np.int64(1 << (packed.bits - 1) if packed.signed else 0),
        isa=np.int64(library.isa_number(config.isa)),
        threads=np.int64(0 if config.threads is None else config.threads),
    )
    return result.astype(call.out_dtype)


def _scratch_bytes(x_shape: tuple[int, ...], packed: PreparedConv, shape: tuple[int, ...], call: Any) -> int:
    """Bytes the kernel works in (`ScratchBytes` in cpp/core/conv.cpp)."""
    lines = [
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(shape[1:3], call.strides, packed.kernel[:2], call.dilation, strict=True)
    ]
    padded = x_shape[0] * lines[0] * lines[1] * x_shape[3] * (4 if packed.depthwise else 1)
    total = 64 + -(-padded // 64) * 64 + 64
    if not packed.depthwise:
        rows = -(-shape[0] * shape[1] * shape[2] // 16) * 16
        span = block_inputs(packed.bits)
        length = packed.kernel[0] * packed.kernel[1] * -(-packed.kernel[2] // span) * span
        total += rows * (-(-length // 64) * 64 + 64 + 12)
    return max(total, 64)
