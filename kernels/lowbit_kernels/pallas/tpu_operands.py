"""The arrays that the TPU kernel is given, made from a call's: rows padded to blocks, tables cut into blocks of K.

Nothing here copies the weight, except where its groups neither divide 128 nor are a multiple of it.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int32, Num

from lowbit_kernels.layout import pack_codes, unpack_codes
from lowbit_kernels.matrix import PackedMatrix
from lowbit_kernels.numerics import StaticActivation, activation_codes
from lowbit_kernels.pallas.tpu_kernel import Geometry


class Rows(NamedTuple):
    """Activations for the kernel.

    Attributes:
        kind: "float", "dynamic", "static" or "codes", as `Geometry.activation`.
        x: float, or int8 codes where `kind` is "codes".
        scale: float32, one or one a row.
        zero: int32, in units of signed codes.
        lo, hi: of the grid, in signed codes.
    """

    kind: str
    x: Num[Array, "rows in"]
    scale: Float32[Array, "..."]
    zero: Int32[Array, ""]
    lo: int = -128
    hi: int = 127


def activations(x: Num[Array, "rows in"], activation: Any, *, in_kernel: bool) -> Rows:
    """What the kernel makes of `x`, or, where it is not `in_kernel` that codes are made, int8 codes made here."""
    one, none = jnp.ones((), jnp.float32), jnp.zeros((), jnp.int32)
    if activation is None:
        return Rows("float", x if x.dtype == jnp.bfloat16 else x.astype(jnp.float32), one, none)
    if not in_kernel or jnp.issubdtype(x.dtype, jnp.integer):
        codes, zero, scale = activation_codes(x, activation)
        if codes.dtype == jnp.uint8:
            codes, zero = lax.bitcast_convert_type(codes ^ jnp.uint8(128), jnp.int8), zero - 128
        return Rows("codes", codes, scale, zero)
    x = x if x.dtype == jnp.bfloat16 else x.astype(jnp.float32)
    if not isinstance(activation, StaticActivation):
        return Rows("dynamic", x, one, none)
    shift = 128 if activation.hi > 127 else 0
    scale, zero = jnp.asarray(activation.scale, jnp.float32), jnp.asarray(activation.zero, jnp.int32)
    return Rows("static", x, scale, zero - shift, activation.lo - shift, activation.hi - shift)


def signed_zeros(packed: PackedMatrix) -> Int32[Array, "groups out"] | None:
    """Zero points of the weight in units of signed codes; None where all are 0."""
    offset = 0 if packed.signed else 1 << (packed.bits - 1)
    if packed.zeros is not None:
        return packed.zeros.astype(jnp.int32) - offset
    return None if packed.signed else jnp.full(packed.scales.shape, -offset, jnp.int32)


def operands(g: Geometry, rows: Rows, packed: PackedMatrix) -> tuple[Array, Array, Array, Array, tuple[Array, Array]]:
    """The arguments of `tpu_kernel.matmul` after `geometry`."""
    x, codes, length = rows.x, packed.codes, g.steps * g.block_k
    if g.filled != g.group:
        x, codes = _pad_groups(g, x, packed)
    x = jnp.pad(x, ((0, g.rows - x.shape[0]), (0, length - x.shape[1])))
    scale = jnp.broadcast_to(rows.scale, (rows.x.shape[0],))
    scale = jnp.pad(scale, (0, g.rows - scale.shape[0]), constant_values=1)[:, None]
    # A group that is all padding adds 0 * -1 = -0.0, which changes no total; 0 * 0 would turn -0.0 into 0.0.
    scales = _table(g, packed.scales.astype(jnp.float32), -1)
    zeros = signed_zeros(packed)
    zeros = jnp.zeros((1, 1, 1), jnp.int32) if zeros is None else _table(g, zeros, 0)
    return x, codes, scales, zeros, (scale, rows.zero.reshape(1, 1))


def _table(g: Geometry, table: Array, padding: int) -> Array:
    """`(G, N)` as `(blocks, groups per block, N)`: the last two dimensions of a block may then have any size."""
    table = jnp.pad(table, ((0, -table.shape[0] % g.groups_per_block), (0, 0)), constant_values=padding)
    return table.reshape(-1, g.groups_per_block, table.shape[1])


def _pad_groups(g: Geometry, x: Array, packed: PackedMatrix) -> tuple[Array, Array]:
    """`x` and signed packed codes with each group of `g.filled` padded to `g.group` and K to whole blocks, by code 0."""
    codes = unpack_codes(packed.codes, packed.bits, packed.length, axis=0, signed=packed.signed)
    if not packed.signed:
        codes = lax.bitcast_convert_type(codes.astype(jnp.uint8) - jnp.uint8(1 << (packed.bits - 1)), jnp.int8)
    return _spread(g, x, 1), pack_codes(_spread(g, codes, 0), packed.bits, axis=0)


def _spread(g: Geometry, array: Array, axis: int) -> Array:
    """Pads each group along `axis` of a matrix, and then the axis to whole blocks."""
    array = array if axis == 0 else array.T
    array = jnp.pad(array, ((0, g.groups * g.filled - g.length), (0, 0)))
    array = array.reshape(g.groups, g.filled, -1)
    array = jnp.pad(array, ((0, 0), (0, g.group - g.filled), (0, 0))).reshape(g.groups * g.group, -1)
    array = jnp.pad(array, ((0, g.steps * g.block_k - array.shape[0]), (0, 0)))
    return array if axis == 0 else array.T
