"""Products of int8 codes that end in int8 codes, without a float: a matmul and a convolution on the native kernels.

    sum  = sum_k (q_x - z_x) q_w                                    int32, modulo 2^32; outside an image, q_x = z_x
    code = clip(round((sum + bias) * multiplier * 2^-31 * 2^-shift) + offset, low, high)

of every output channel; and where the codes are joined with others of the same place (a residual sum), in the same call

    code = clip(round(((code - own_zero) * own + (other - other_zero) * by) * 2^-shift) + offset, low, high)

or the larger or smaller in place of the sum. A product with a multiplier has 62 bits, and is rounded as `ROUNDINGS` says: "exact" once, half to even;
"tflite_single" once, half up; "gemmlowp_double" to 32 bits half up, then half away from zero. It saturates at 2^30.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int8, Num

from lowbit_kernels import checks
from lowbit_kernels.conv import PackedConv, conv_codes
from lowbit_kernels.cpu import conv as cpu_conv
from lowbit_kernels.cpu import library
from lowbit_kernels.cpu.matmul import check_config, scratch_bytes
from lowbit_kernels.cpu.prepare import prepare, stored_bits
from lowbit_kernels.cpu.tail import given, grouped
from lowbit_kernels.matrix import PackedMatrix
from lowbit_kernels.windows import windows_of

ROUNDINGS = ("exact", "tflite_single", "gemmlowp_double")  # numbers shared with enum Rounding in cpp/core/problem.h
JOINS = ("add", "max", "min")  # numbers shared with enum Join there
JOIN_NUMBERS = 8  # as enum JoinNumber there
ROWS = 7  # of a table, as enum FixedRow in cpp/core/problem.h


class Rescale(NamedTuple):
    """The way from sums to codes: int32, one number or one an output channel, `(out,)`.

    Attributes:
        bias: added to a sum.
        multiplier: of 31 bits and a sign.
        shift: -30 to 31: further places that the product is shifted to the right.
        offset: added to the rounded product.
        low: the smallest code.
        high: the largest.
        zero: z_x, one number, an int8 code.
    """

    bias: Any
    multiplier: Any
    shift: Any
    offset: Any
    low: Any
    high: Any
    zero: Any


class FloatGrid(NamedTuple):
    """The grid of an input that is float32 still: the call puts it there first, NaN on the zero point, as `quantize_static`.

    Attributes:
        scale: float32, one number.
        lo: the smallest code.
        hi: the largest, at most 127.
    """

    scale: Any
    lo: int
    hi: int


class Join(NamedTuple):
    """What the codes of a product are joined with.

    Attributes:
        other: int8 codes in the shape of the result.
        numbers: int32 `(8,)`: own, by, shift, offset, low, high, own_zero, other_zero; shift from 0 to 31.
        kind: one of `JOINS`.
    """

    other: Any
    numbers: Any
    kind: str = "add"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedMatrix:
    """A `(K, N)` matrix in the CPU kernels' order, and the way back to codes.

    Attributes:
        blocks, zeros, column_sums: as in `PreparedMatrix`, of one group.
        table: int32 `(7, ceil(N / 16), 16)`: the rows of a `Rescale`.
        bits, signed, length, out: as there.
        rounding: one of `ROUNDINGS`.
    """

    blocks: Any
    zeros: Any
    column_sums: Any
    table: Any
    bits: int = dataclasses.field(metadata={"static": True})
    signed: bool = dataclasses.field(metadata={"static": True})
    length: int = dataclasses.field(metadata={"static": True})
    out: int = dataclasses.field(metadata={"static": True})
    rounding: str = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedConv:
    """HWIO weights in the CPU kernels' order, and the way back to codes.

    Attributes:
        weights, sums: as in `PreparedConv`; sums None for depthwise.
        table: int32 `(7, tiles, 16)`: the rows of a `Rescale`, each group's channels filling whole tiles.
        bits, signed, kernel, groups, depthwise: as there.
        rounding: one of `ROUNDINGS`.
    """

    weights: Any
    sums: Any
    table: Any
    bits: int = dataclasses.field(metadata={"static": True})
    signed: bool = dataclasses.field(metadata={"static": True})
    kernel: tuple[int, int, int, int] = dataclasses.field(metadata={"static": True})
    groups: int = dataclasses.field(metadata={"static": True})
    depthwise: bool = dataclasses.field(metadata={"static": True})
    rounding: str = dataclasses.field(metadata={"static": True})


def prepare_fixed(packed: PackedMatrix, rescale: Rescale, rounding: str) -> FixedMatrix:
    """A packed matrix of one group, and the way back to codes, in the CPU kernels' order; pure. Its scales are not read.

    Raises:
        ValueError: groups, a codebook, an unknown rounding, or numbers that do not fit.
        TypeError: what is no packed matrix or no integer.
    """
    checks.instance("prepare_fixed: packed", packed, PackedMatrix, "pack_matrix")
    if packed.groups != 1 or packed.codebook is not None or packed.factors is not None:
        raise ValueError("prepare_fixed: packed must hold integers of one group along K")
    made = prepare(packed)
    return FixedMatrix(
        blocks=made.blocks, zeros=made.zeros, column_sums=made.column_sums,
        table=_table("prepare_fixed", rescale, made.out, 1), bits=made.bits, signed=made.signed, length=made.length,
        out=made.out, rounding=checks.word("prepare_fixed: rounding", rounding, ROUNDINGS),
    )  # fmt: skip


def prepare_fixed_conv(
    packed: PackedConv, rescale: Rescale, rounding: str, *, feature_group_count: int = 1
) -> FixedConv:
    """A packed convolution, and the way back to codes, in the CPU kernels' order; pure. Its scales are not read.

    Raises:
        ValueError: outputs that do not divide into the groups, an unknown rounding, or numbers that do not fit.
        TypeError: what is no packed convolution or no integer.
    """
    checks.instance("prepare_fixed_conv: packed", packed, PackedConv, "pack_conv")
    groups = checks.integer("prepare_fixed_conv: feature_group_count", feature_group_count, 1)
    out = packed.kernel[3]
    if out % groups:
        raise ValueError(f"prepare_fixed_conv: {out} outputs do not divide into {groups} groups")
    made = cpu_conv.prepare(conv_codes(packed), packed.scales, bits=packed.bits, signed=packed.signed, groups=groups)
    table = _table("prepare_fixed_conv", rescale, out, 1 if made.depthwise else groups)
    return FixedConv(
        weights=made.weights, sums=None if made.depthwise else made.sums, table=table, bits=made.bits, signed=made.signed,
        kernel=made.kernel, groups=groups, depthwise=made.depthwise,
        rounding=checks.word("prepare_fixed_conv: rounding", rounding, ROUNDINGS),
    )  # fmt: skip


def _table(what: str, rescale: Rescale, out: int, groups: int) -> Array:
    rows = []
    for name, x in zip(Rescale._fields, rescale, strict=True):
        checks.number(f"{what}: Rescale.{name}", x, is_integer=True)
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.integer) or x.shape not in ((), (out,)) or (name == "zero" and x.ndim):
            raise ValueError(f"{what}: Rescale.{name} must be int32 () or ({out},), got {x.dtype} {x.shape}")
        rows.append(jnp.broadcast_to(x.astype(jnp.int32), (out,)))
    return _every_lane(grouped(jnp.stack(rows), groups), rescale.zero)


def _every_lane(table: Array, zero: Any) -> Array:
    """The zero point of x in padded channels as well: there is one where there is a tile."""
    return table.at[ROWS - 1].set(jnp.asarray(zero).astype(jnp.int32))


def supports() -> str | None:
    """None where the native library computes in fixed point, else the reason."""
    return library.status().reason or (None if library.has_fixed() else "the native library is older: build it again")


def fixed_matmul(
    x: Num[Array, "*batch in"],
    matrix: FixedMatrix,
    *,
    grid: FloatGrid | None = None,
    join: Join | None = None,
    config: object = None,
) -> Int8[Array, "*batch out"]:
    """Codes of `x @ W`, rows after rows.

    Args:
        x: codes, or float32 with `grid`.
        matrix: of `prepare_fixed`.
        grid: of float32 x.
        join: what the codes are joined with, or None.
        config: a `CpuConfig`, or None.

    Works under `jit` and `vmap`. Not differentiable.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: other codes than int8, or no prepared matrix.
        NotImplementedError: the native library is not there.
    """
    x = _codes("fixed_matmul", x, grid)
    checks.instance("fixed_matmul: matrix", matrix, FixedMatrix, "prepare_fixed")
    if not x.ndim or x.shape[-1] != matrix.length:
        raise ValueError(f"fixed_matmul: x must be (..., {matrix.length}), got {x.shape}")
    tiles, length = -(-matrix.out // 16), matrix.length
    _check_table("FixedMatrix", matrix.table, tiles)
    isa, threads = _options(config)
    rows = math.prod(x.shape[:-1])
    results = [
        jax.ShapeDtypeStruct((rows, matrix.out), jnp.int8),
        jax.ShapeDtypeStruct((scratch_bytes(rows, length, length, matrix.bits, 2),), jnp.uint8),
    ]
    operands, bits, places = given(
        [x.reshape(rows, length), matrix.blocks, matrix.column_sums, matrix.table, (matrix.zeros, 1),
         *_joined("fixed_matmul", join, (*x.shape[:-1], matrix.out), (rows, matrix.out)), *_scale(grid)]
    )  # fmt: skip
    numbers = (
        bits, stored_bits(matrix.bits), 1 << (matrix.bits - 1) if matrix.signed else 0, length,
        ROUNDINGS.index(matrix.rounding), _kind(join), *_bounds(grid), isa, threads, *places,
    )  # fmt: skip
    call = jax.ffi.ffi_call(library.FIXED["LowbitFixedMatmulCall"], results, vmap_method="expand_dims")
    codes, _ = call(*operands, config=np.asarray(numbers, np.int64))
    return codes.reshape(*x.shape[:-1], matrix.out)


def fixed_conv(
    x: Num[Array, "..."],
    packed: FixedConv,
    *,
    strides: tuple[int, ...] | None = None,
    padding: Any = "SAME",
    rhs_dilation: tuple[int, ...] | None = None,
    layout: str | None = None,
    grid: FloatGrid | None = None,
    join: Join | None = None,
    config: object = None,
) -> Int8[Array, "..."]:
    """Codes of a convolution; the border is padded with the zero point.

    Args:
        x: codes, or float32 with `grid`.
        packed: of `prepare_fixed_conv`.
        strides: as in `lowbit_kernels.quant_conv`, and so are the others.
        padding: pairs are not negative.
        rhs_dilation: of the kernel.
        layout: of x and of the result.
        grid: of float32 x.
        join: what the codes are joined with, or None.
        config: a `CpuConfig`, or None.

    Works under `jit` and `vmap`. Not differentiable.

    Raises:
        ValueError: what does not fit together.
        TypeError: other codes than int8, or no prepared convolution.
        NotImplementedError: the native library is not there, or the padding negative.
    """
    x = _codes("fixed_conv", x, grid)
    checks.instance("fixed_conv: packed", packed, FixedConv, "prepare_fixed_conv")
    x, w = windows_of(
        "fixed_conv", x, packed.kernel, packed.groups, layout=layout, strides=strides, padding=padding,
        rhs_dilation=rhs_dilation,
    )  # fmt: skip
    if any(low < 0 or high < 0 for low, high in w.padding):
        raise NotImplementedError("fixed_conv: negative padding")
    batch, height, width, out = w.shape
    _check_table("FixedConv", packed.table, packed.table.shape[1])
    isa, threads = _options(config)
    x_shape = (x.shape[0], *x.shape[2:], x.shape[1]) if w.first else x.shape
    stored = (batch, out, height, width) if w.first else w.shape
    shape = tuple(n for i, n in enumerate(stored) if not w.axes.flat or i != w.axes.height)
    results = [
        jax.ShapeDtypeStruct(stored, jnp.int8),
        jax.ShapeDtypeStruct((cpu_conv.scratch_bytes(x_shape, packed, w.shape, w.strides, w.dilation),), jnp.uint8),
    ]
    operands, bits, places = given(
        [x, packed.weights, packed.table, (packed.sums, 2), *_joined("fixed_conv", join, shape, stored), *_scale(grid)]
    )
    numbers = (
        bits, packed.groups, packed.depthwise, 8 if packed.depthwise else stored_bits(packed.bits),
        1 << (packed.bits - 1) if packed.signed else 0, w.first, ROUNDINGS.index(packed.rounding), _kind(join), *_bounds(grid),
        isa, threads,
        *packed.kernel[:2], *w.strides, *w.dilation, *(low for low, _ in w.padding), *places,
    )  # fmt: skip
    call = jax.ffi.ffi_call(library.FIXED["LowbitFixedConvCall"], results, vmap_method="sequential")
    codes, _ = call(*operands, config=np.asarray(numbers, np.int64))
    return lax.squeeze(codes, (w.axes.height,)) if w.axes.flat else codes


def _codes(what: str, x: Any, grid: FloatGrid | None) -> Array:
    if (reason := supports()) is not None:
        raise NotImplementedError(f"{what}: {reason}")
    x = checks.array(f"{what}: x", x)
    if grid is None and x.dtype != jnp.int8:
        raise TypeError(f"{what}: x must be int8 codes, or float32 with a grid, got {x.dtype}")
    if grid is not None:
        checks.instance(f"{what}: grid", grid, FloatGrid, "FloatGrid(scale, lo, hi)")
        checks.described(f"{what}: FloatGrid.scale", grid.scale)
        if x.dtype != jnp.float32 or grid.scale.dtype.name != "float32" or grid.scale.size != 1:
            raise TypeError(
                f"{what}: x and one scale of its grid must be float32, got {x.dtype} and {grid.scale.dtype} {grid.scale.shape}"
            )
        low = checks.integer(f"{what}: FloatGrid.lo", grid.lo, -128, 126)
        checks.integer(f"{what}: FloatGrid.hi", grid.hi, low + 1, 127)
    return x


def _scale(grid: FloatGrid | None) -> list[tuple[Any, int]]:
    return [(None, 8)] if grid is None else [(grid.scale.reshape((1,)), 8)]


def _bounds(grid: FloatGrid | None) -> tuple[int, int]:
    return (-128, 127) if grid is None else (grid.lo, grid.hi)


def _check_table(what: str, table: Any, tiles: int) -> None:
    checks.described(f"{what}.table", table)
    if table.shape != (ROWS, tiles, 16) or table.dtype != jnp.int32:
        raise ValueError(f"{what}.table must be int32 {(ROWS, tiles, 16)}, got {table.dtype} {table.shape}")


def _joined(what: str, join: Join | None, shape: tuple[int, ...], stored: tuple[int, ...]) -> list[tuple[Any, int]]:
    """The operands of a join to codes of a shape, as they are stored."""
    if join is None:
        return [(None, 4), (None, 4)]
    checks.instance(f"{what}: join", join, Join, "Join(other, numbers, kind)")
    checks.word(f"{what}: Join.kind", join.kind, JOINS)
    for name, x, wanted, dtype in (
        ("other", join.other, shape, "int8"),
        ("numbers", join.numbers, (JOIN_NUMBERS,), "int32"),
    ):
        checks.described(f"{what}: Join.{name}", x)
        if x.shape != wanted or x.dtype.name != dtype:
            raise ValueError(f"{what}: Join.{name} must be {dtype} {wanted}, got {x.dtype} {x.shape}")
    return [(join.other.reshape(stored), 4), (join.numbers, 4)]


def _kind(join: Join | None) -> int:
    return 0 if join is None else JOINS.index(join.kind)


def _options(config: object) -> tuple[int, int]:
    config = check_config(config)
    return library.isa_number(config.isa), 0 if config.threads is None else config.threads
