"""The TPU kernel: unpack, multiply on the matrix unit, scale; one grid step a block of `(rows, K, out)`.

    grid (m, n, k), k innermost
    first step of a row block    activations -> `lhs`, in VMEM, kept for every n and k
    every step                   bytes (bk / codes a byte, bn) -> int4 or int2 by a bitcast -> int8 or bfloat16
                                 sums = lhs[k] @ weights, int32 or float32; total += sums * scales
    last k                       total -> out

Groups shorter than the matrix unit is deep would fill only a part of it. Such groups share one product instead: the
rows of `lhs` are repeated, once a group, with the other groups' columns zeroed, so that one pass over a weight tile
gives the sum of every group in it:

    span of 2 groups    lhs = | x[:, group 0]        0       |    lhs @ weights = | sums of group 0 |
                              |      0         x[:, group 1] |                    | sums of group 1 |

Float activations are split into bfloat16 terms that add up to them exactly, so that every product is exact and only
the float32 sums round. A total starts at -0.0, which is the identity of float addition; 0.0 is not (-0.0 + 0.0 = 0.0).
"""

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from lowbit_kernels.numerics import StaticActivation, dynamic_scale, rounded_product, static_codes

CODES = {2: jnp.int2, 4: jnp.int4, 8: jnp.int8}
SIGN_BITS = {8: 0x80, 4: 0x88, 2: 0xAA}  # flips unsigned codes of a byte to signed ones, each less 2**(bits - 1)
ONES = 8  # rows of ones under each block of rows (one sublane tile): their products are the column sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """The static shape of one kernel: what `pallas/tpu.py` decides and the body reads.

    Attributes:
        rows, length, out: M, K, N as the arrays have them; `length` counts codes, without padding.
        bits, signed, group, groups: of the weight. `group` divides 128, is a multiple of 128, or is all of K.
        filled: codes in a group; less than `group` where groups are padded.
        block_m, block_n, block_k: elements of a block; `block_k` holds whole groups or a group holds whole blocks.
        activation: "float", "dynamic", "static" (float x) or "codes" (int8 x).
        lo, hi: of a static grid.
        terms: bfloat16 terms that a float activation takes: 1 for bfloat16, 2 for float16, 3 for float32.
        weight_terms: the same of a weight: 2 where a code less its zero point can exceed 256, else 1.
        affine: the weight has zero points, or unsigned codes.
        scale_on: "sums" or "weight".
        out_dtype: "float32" or "bfloat16"; "int32" for the sums themselves, unscaled, of integer activations and one group.
    """

    rows: int
    length: int
    out: int
    bits: int
    signed: bool
    group: int
    groups: int
    filled: int
    block_m: int
    block_n: int
    block_k: int
    activation: str
    lo: int
    hi: int
    terms: int
    weight_terms: int
    affine: bool
    scale_on: str
    out_dtype: str

    @property
    def is_integer(self) -> bool:
        return self.activation != "float"

    @property
    def steps(self) -> int:
        """Blocks along K."""
        return -(-self.length // self.block_k)

    @property
    def steps_per_group(self) -> int:
        return self.steps if self.groups == 1 else max(1, self.group // self.block_k)

    @property
    def groups_per_block(self) -> int:
        return 1 if self.groups == 1 else max(1, self.block_k // self.group)

    @property
    def span(self) -> int:
        """Codes along K in one product: a whole block unless sums are scaled group by group inside it."""
        if self.groups_per_block == 1 or self.scale_on == "weight":
            return self.block_k
        return min(self.block_k, max(self.group, SPAN))

    @property
    def share(self) -> int:
        """Groups in one span, each with its own rows of `lhs`."""
        return 1 if self.groups_per_block == 1 or self.scale_on == "weight" else self.span // self.group

    @property
    def has_ones(self) -> bool:
        """Column sums are needed: the activations have a zero point."""
        return self.activation in ("static", "codes")

    @property
    def rows_per_group(self) -> int:
        return self.block_m + (ONES if self.has_ones else 0)

    @property
    def lhs_rows(self) -> int:
        return self.terms * self.share * self.rows_per_group

    @property
    def lhs_dtype(self) -> Any:
        return jnp.int8 if self.is_integer else jnp.bfloat16

    @property
    def keeps_sums(self) -> bool:
        """Sums outlast a step of the grid."""
        return self.steps_per_group > 1 or self.out_dtype == "int32"

    @property
    def sums_dtype(self) -> Any:
        return jnp.int32 if self.is_integer else jnp.float32


SPAN = 256  # depth of the v6e and v7x matrix unit; v5e's 128 divides it


def matmul(
    geometry: Geometry, x: Array, codes: Array, scales: Array, zeros: Array, grid: tuple[Array, Array], interpret: Any
) -> Array:
    """`x @ W` as `(rows, out)` of `geometry.out_dtype`.

    Args:
        geometry: static shape; x is padded to whole blocks of rows and of K, the weight is not.
        x: `(rows, K padded)` float32 or bfloat16, or int8 codes.
        codes: `(packed K, out)` bytes.
        scales: `(blocks of scales, groups per block, out)` float32.
        zeros: the same shape, int32, in units of signed codes; one element where `geometry.affine` is false.
        grid: scale `(rows, 1)` float32 and zero `(1, 1)` int32 of static activations.
        interpret: as `pallas_call` takes it.
    """
    g = geometry
    per_byte = 8 // g.bits
    row_scale, zero = grid
    table = pl.BlockSpec(
        (None, g.groups_per_block, g.block_n), lambda m, n, k: (lax.div(k, jnp.int32(g.steps_per_group)), 0, n)
    )
    unused = pl.BlockSpec((None, 1, 1), lambda m, n, k: (0, 0, 0))
    out = jax.ShapeDtypeStruct((g.rows, g.out), jnp.dtype(g.out_dtype))
    weight_bytes = codes.size + scales.size * 4
    return pl.pallas_call(
        functools.partial(_body, g),
        grid=(g.rows // g.block_m, pl.cdiv(g.out, g.block_n), g.steps),
        in_specs=[
            pl.BlockSpec((g.block_m, x.shape[1]), lambda m, n, k: (m, 0)),
            pl.BlockSpec((g.block_k // per_byte, g.block_n), lambda m, n, k: (k, n)),
            table,
            table if g.affine else unused,
            pl.BlockSpec((g.block_m, 1), lambda m, n, k: (m, 0)),
            pl.BlockSpec(memory_space=pltpu.SMEM),
        ],
        out_specs=pl.BlockSpec((g.block_m, g.block_n), lambda m, n, k: (m, n)),
        out_shape=out,
        scratch_shapes=[
            pltpu.VMEM((g.steps, g.lhs_rows, g.block_k), g.lhs_dtype),
            pltpu.VMEM((g.block_m, 1), jnp.float32),
            pltpu.VMEM((g.block_m, g.block_n), jnp.float32),
            pltpu.VMEM((g.block_m, g.block_n) if g.keeps_sums else (8, 128), g.sums_dtype),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * g.rows * g.length * g.out,
            transcendentals=0,
            bytes_accessed=weight_bytes * (g.rows // g.block_m) + x.nbytes + out.size * out.dtype.itemsize,
        ),
        interpret=interpret,
        name=f"lowbit_w{g.bits}_{g.activation}",
    )(x, codes, scales, zeros, row_scale, zero)


VMEM_LIMIT = 48 << 20  # of 64 MiB on v7x and 128 MiB on the others; XLA's own default is 16 to 32 MiB


def _body(
    g: Geometry, x_ref, codes_ref, scales_ref, zeros_ref, row_scale_ref, zero_ref, out_ref, lhs, row_scale, total, sums
):
    n, k = pl.program_id(1), pl.program_id(2)

    @pl.when(jnp.logical_and(n == 0, k == 0))
    def _():
        _prepare_rows(g, x_ref, row_scale_ref, zero_ref, lhs, row_scale)

    @pl.when(k == 0)
    def _():
        total[...] = jnp.full(total.shape, -0.0, jnp.float32)

    weights = _weights(g, codes_ref[...], scales_ref, zeros_ref)
    for first in range(0, g.block_k, g.span):
        span = slice(first, first + g.span)
        rows = lhs[k, :, span]
        product = _add_up([_dot(rows, term[span], g.sums_dtype) for term in weights])
        for part, group in enumerate(_group_sums(g, product, rows, zeros_ref, zero_ref, k, first)):
            index = first // g.group + part if g.groups_per_block > 1 else 0
            _add(g, total, sums, group, scales_ref[index : index + 1, :], k)

    @pl.when(k == g.steps - 1)
    def _():
        if g.out_dtype == "int32":
            out_ref[...] = sums[...]
            return
        result = total[...]
        if g.is_integer:
            result = rounded_product(result, row_scale[...])
        out_ref[...] = result.astype(out_ref.dtype)


def _dot(a: Array, b: Array, dtype: Any) -> Array:
    return lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=dtype)


def _add_up(parts: list[Array]) -> Array:
    return functools.reduce(operator.add, parts)


def _prepare_rows(g: Geometry, x_ref, row_scale_ref, zero_ref, lhs, row_scale) -> None:
    """Fills `lhs[k]` for every k: int8 codes or bfloat16 terms, a row of ones under each block, one copy a group of a span."""
    if g.activation == "dynamic":
        row_scale[...] = dynamic_scale(x_ref[...])[:, None]
    elif g.is_integer:
        row_scale[...] = row_scale_ref[...]

    def prepare(k: Array, carry: Any) -> Any:
        x = x_ref[:, pl.ds(pl.multiple_of(k * g.block_k, 128), g.block_k)]
        column = lax.broadcasted_iota(jnp.int32, (g.rows_per_group, g.block_k), 1)
        if g.is_integer:
            parts = [_codes(g, x, row_scale[...][:, 0], zero_ref[0, 0])]
            if g.has_ones:
                parts = [jnp.concatenate([parts[0], jnp.ones((ONES, g.block_k), jnp.int32)], axis=0)]
            if g.steps * g.block_k != g.length and g.filled == g.group:
                parts = [jnp.where(k * g.block_k + column < g.length, parts[0], 0)]
        else:
            parts = split(x.astype(jnp.float32), g.terms)
        inside = (column & (g.span - 1)) >> (g.group.bit_length() - 1)  # the group of a column in its span
        blocks = [
            part if g.share == 1 else jnp.where(inside == j, part, jnp.zeros_like(part))
            for part in parts
            for j in range(g.share)
        ]
        lhs[k] = jnp.concatenate(blocks, axis=0).astype(g.lhs_dtype)
        return carry

    lax.fori_loop(0, g.steps, prepare, None)


def _codes(g: Geometry, x: Array, scale: Array, zero: Array) -> Array:
    """int32 codes of a block of activations."""
    if g.activation == "codes":
        return x.astype(jnp.int32)
    if g.activation == "dynamic":  # a row with a NaN has scale NaN, which makes its results NaN whatever its codes
        return static_codes(x, StaticActivation(scale), clears_nan=False).astype(jnp.int32)
    return static_codes(x, StaticActivation(scale, zero, g.lo, g.hi)).astype(jnp.int32)


def split(x: Array, terms: int) -> list[Array]:
    """Float32 values that bfloat16 holds exactly and that add up to `x`: three hold the 24 bits of a float32.

    Each but the last is `x` cut after 8 significant bits; the rest is exact. Infinity and NaN are the first term.
    """
    result = []
    for _ in range(terms - 1):
        high = lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-(1 << 16)), jnp.float32)
        finite = jnp.isfinite(x)
        result.append(jnp.where(finite, high, x))
        x = jnp.where(finite, x - high, jnp.zeros_like(x))
    return [*result, x]


def _weights(g: Geometry, packed: Array, scales_ref, zeros_ref) -> list[Array]:
    """The block `(block_k, block_n)` as one int8 array, or as bfloat16 arrays that add up to it."""
    if not g.signed:
        word = int.from_bytes(bytes([SIGN_BITS[g.bits]] * 4), "little", signed=True)
        packed = pltpu.bitcast(pltpu.bitcast(packed, jnp.int32) ^ jnp.int32(word), jnp.uint8)
    codes = pltpu.bitcast(packed, CODES[g.bits])
    if g.is_integer:
        return [codes.astype(jnp.int8)]
    if not g.affine and g.scale_on == "sums":
        return [codes.astype(jnp.bfloat16)]
    levels = codes.astype(jnp.float32)
    if g.affine:
        levels = levels - _expand(g, zeros_ref[...]).astype(jnp.float32)
    if g.scale_on == "weight":
        levels = levels * _expand(g, scales_ref[...])
    return [term.astype(jnp.bfloat16) for term in split(levels, g.weight_terms)]


def _expand(g: Geometry, table: Array) -> Array:
    """A block's table `(groups, block_n)` with a row for each code, or one row for all."""
    if g.groups_per_block == 1:
        return table
    shape = (g.groups_per_block, g.group, table.shape[1])
    return lax.broadcast_in_dim(table, shape, (0, 2)).reshape(g.block_k, table.shape[1])


def _group_sums(g: Geometry, product: Array, rows: Array, zeros_ref, zero_ref, k: Array, first: int) -> list[Array]:
    """The sums `(block_m, block_n)` of each group in a span, zero points taken out."""
    if not g.is_integer:
        parts = [product[i * g.block_m : (i + 1) * g.block_m] for i in range(g.terms * g.share)]
        return [_add_up(parts[j :: g.share]) for j in range(g.share)]
    result = []
    for j in range(g.share):
        top, bottom = j * g.rows_per_group, j * g.rows_per_group + g.block_m
        value = product[top:bottom]
        zero = zero_ref[0, 0] if g.has_ones else jnp.int32(0)
        if g.has_ones:
            value = value - zero * product[bottom : bottom + 1]
        if g.affine:
            index = first // g.group + j if g.groups_per_block > 1 else 0
            count = _count(g, k, first + j * g.group)
            steps = jnp.sum(rows[top:bottom].astype(jnp.int32), axis=1, keepdims=True) - zero * count
            value = value - steps * zeros_ref[index : index + 1, :]
        result.append(value)
    return result


def _count(g: Geometry, k: Array, offset: int) -> Array:
    """How many codes of the weight, padding left out, a group has in block `k` from `offset` on."""
    start = k * g.block_k + offset
    group = lax.div(start, jnp.int32(g.group))
    left = jnp.minimum(g.filled, g.length - group * g.filled) - lax.rem(start, jnp.int32(g.group))
    return jnp.clip(left, 0, min(g.group, g.span))


def _add(g: Geometry, total, sums, value: Array, scale: Array, k: Array) -> None:
    """`total += value * scale`, once the group that `value` belongs to is whole."""
    if g.out_dtype == "int32":
        sums[...] = jnp.where(k == 0, value, sums[...] + value)
        return
    if g.scale_on == "weight":
        total[...] += value
        return

    def add(value: Array) -> None:
        total[...] += rounded_product(value.astype(jnp.float32), scale)

    if g.steps_per_group == 1:
        add(value)
        return
    inner = lax.rem(k, jnp.int32(g.steps_per_group))
    sums[...] = jnp.where(inner == 0, value, sums[...] + value)
    pl.when(jnp.logical_or(inner == g.steps_per_group - 1, k == g.steps - 1))(lambda: add(sums[...]))
