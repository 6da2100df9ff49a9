"""The matmul in plain XLA operations that never hold a float copy of the whole weight.

Per channel: one int8 dot into int32, zero points folded in as exact integer sums. Grouped: a scan over groups, each
unpacked, multiplied and scaled in turn, so that temporaries stay the size of one group.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int8, Int32, Num

from lowbit_kernels.layout import packed_length, unpack_codes
from lowbit_kernels.matrix import PackedMatrix, dequantize_matrix
from lowbit_kernels.numerics import StaticActivation, activation_codes, rounded_product
from lowbit_kernels.spec import Implementation, MatmulSpec


def supports(spec: MatmulSpec) -> str | None:
    """None: any spec runs on any platform."""
    return None


def cost(spec: MatmulSpec) -> str:
    """The price of the plain form, for `explain`."""
    if spec.platform == "cpu" and spec.bits < 8:
        return "unpacks the weight in every call: on a CPU slower than float32 (see the README's table)"
    return ""


def run(x: Array, packed: PackedMatrix, activation: Any, out_dtype: str, config: object) -> Array:
    """See `Implementation.run`."""
    if out_dtype == "int32":
        codes, zero, _ = activation_codes(x, activation)
        weights = unpack_codes(packed.codes, packed.bits, packed.length, axis=0, signed=packed.signed)
        zeros = None if packed.zeros is None else packed.zeros[0]
        return _integer_sums(*_centred(codes, zero), weights, zeros)
    return matmul(x, packed, activation).astype(out_dtype)


def matmul(
    x: Num[Array, "rows in"], packed: PackedMatrix, activation: str | StaticActivation | None
) -> Float32[Array, "rows out"]:
    """`x @ W` in float32, equal to `reference.matmul`: bit for bit where activations are integers."""
    if activation is None:
        return _float_matmul(x.astype(jnp.float32), packed)
    codes, zero, scale = activation_codes(x, activation)
    codes, zero = _centred(codes, zero)
    total = _scan_groups(lambda part, table, zeros: _integer_term(part, zero, table, zeros), codes, packed)
    return rounded_product(total, scale[:, None] if scale.ndim else scale)


def _centred(codes: Array, zero: Array) -> tuple[Int8[Array, "rows in"], Int32[Array, ""]]:
    """uint8 codes moved to int8, so that one signed dot serves both; `codes - zero` is unchanged."""
    if codes.dtype == jnp.uint8:
        return lax.bitcast_convert_type(codes ^ jnp.uint8(128), jnp.int8), zero - 128
    return codes, zero


def _integer_term(codes: Array, zero: Array, weights: Array, zeros: Array | None) -> Float32[Array, "rows out"]:
    """`_integer_sums` of one group in float32."""
    return _integer_sums(codes, zero, weights, zeros).astype(jnp.float32)


def _integer_sums(codes: Array, zero: Array, weights: Array, zeros: Array | None) -> Int32[Array, "rows out"]:
    """`sum_k (q_x - z_x) (q_w - z_w)` of one group, exact in int32."""
    weights, offset = (
        (lax.bitcast_convert_type(weights ^ jnp.uint8(128), jnp.int8), 128)
        if weights.dtype == jnp.uint8
        else (weights, 0)
    )
    acc = lax.dot_general(codes, weights, (((1,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    acc = acc - zero * jnp.sum(weights, axis=0, dtype=jnp.int32)
    if zeros is None and offset == 0:
        return acc
    weight_zero = -offset if zeros is None else zeros.astype(jnp.int32) - offset
    rows = jnp.sum(codes, axis=1, dtype=jnp.int32, keepdims=True) - zero * codes.shape[1]
    return acc - rows * weight_zero


def _float_matmul(x: Float32[Array, "rows in"], packed: PackedMatrix) -> Float32[Array, "rows out"]:
    if packed.codebook is not None:
        return jnp.dot(x, dequantize_matrix(packed), precision=lax.Precision.HIGHEST)

    def term(part: Array, weights: Array, zeros: Array | None) -> Array:
        levels = weights.astype(jnp.float32)
        if zeros is not None:
            levels = levels - zeros.astype(jnp.float32)
        return jnp.dot(part, levels, precision=lax.Precision.HIGHEST)

    return _scan_groups(term, x, packed)


def _scan_groups(term, x: Array, packed: PackedMatrix) -> Float32[Array, "rows out"]:
    """`sum_g term(x_g, codes_g, zeros_g) * scales_g`, g ascending; whole groups in a scan, a short last one after it."""
    group, groups, length = packed.group, packed.groups, packed.length
    scales = packed.scales.astype(jnp.float32)
    size = packed_length(group, packed.bits)
    if groups > 1 and group * packed.bits % 8:  # groups share bytes: unpack once, in int8, still not in float
        codes = unpack_codes(packed.codes, packed.bits, length, axis=0, signed=packed.signed)
    else:
        codes = None

    def weights(g: int | Array, count: int) -> Array:
        if codes is not None:
            return lax.dynamic_slice_in_dim(codes, g * group, count, axis=0)
        part = lax.dynamic_slice_in_dim(packed.codes, g * size, packed_length(count, packed.bits), axis=0)
        return unpack_codes(part, packed.bits, count, axis=0, signed=packed.signed)

    def scaled(g: int | Array, count: int) -> Array:
        zeros = None if packed.zeros is None else lax.dynamic_index_in_dim(packed.zeros, g, 0, keepdims=False)
        part = lax.dynamic_slice_in_dim(x, g * group, count, axis=1)
        scale = lax.dynamic_index_in_dim(scales, g, 0, keepdims=False)
        return rounded_product(term(part, weights(g, count), zeros), scale)

    if groups == 1:
        return scaled(0, length)
    whole = length // group
    # The first group starts the sum (0 + f would turn -0.0 into 0.0); the rest are added in order.
    total = scaled(0, group)
    total = lax.fori_loop(1, whole, lambda g, total: total + scaled(g, group), total)
    if whole < groups:
        total = total + scaled(whole, length - whole * group)
    return total


IMPLEMENTATION = Implementation("xla", supports, run, cost, sums=True)
