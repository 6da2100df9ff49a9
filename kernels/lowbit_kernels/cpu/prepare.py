"""The CPU kernels' physical order of a packed matrix, made once by a pure function, and its inverse.

STABLE: `prepare(packed) -> PreparedMatrix`, `restore(prepared) -> PackedMatrix`. The bytes inside may change.

One block is 64 bytes: 16 output channels, 4 bytes each, the operand of one `vpdpbusd`. A byte holds `p = 8 / bits`
neighbours in K, so a block spans `4 p` inputs: bits 8: 4, bits 4: 8, bits 2: 16.

    byte 4 n + j of block b      field s (bits s*bits and up)   =   u[k = 4 p b + p j + s, channel n]

`u = code + 2**(bits - 1)` for signed codes (two's complement with the sign bit flipped), `u = code` for unsigned.
Blocks follow each other along K, a group padded to whole blocks; then come the next 16 channels. Padded inputs meet
activations of code 0. Codes of 3 bits (and 1) are stored in the next wider of 2, 4, 8.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lowbit_kernels import checks
from lowbit_kernels.layout import pack_codes, unpack_codes
from lowbit_kernels.matrix import PackedMatrix, check_matrix

CHANNELS = 16  # output channels in a block
BYTES = 4  # bytes of a channel in a block


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedMatrix:
    """A `(K, N)` matrix in the order the CPU kernels read; a pytree of arrays with static integers.

    Attributes:
        blocks: uint8 `(ceil(N / 16), B, 64)`, B blocks along K.
        scales: `(ceil(N / 16), G, 16)` float32 or bfloat16; padded channels have scale 0. With `factors` `(.., 1, 16)`.
        zeros: int16 like `scales`, zero points of the stored codes `u`, or None.
        column_sums: int16 or int32 like `scales`, sums of the stored codes `u` over each group, or None. Needed for
            activations with a zero point; 16 bits a group, or 32 where 16 could overflow.
        codebook: float32 table of `2**stored_bits(bits)` entries, those past `2**bits` zero, or None.
        bits: of the logical code, 1 to 8 (the stored width is `stored_bits`).
        signed, length, group: as in `PackedMatrix`.
        out: N.
        factors: int8 `(ceil(N / 16), G, 16)` integer scales of groups, or None.
    """

    blocks: Any
    scales: Any
    zeros: Any
    column_sums: Any
    codebook: Any
    bits: int = dataclasses.field(metadata={"static": True})
    signed: bool = dataclasses.field(metadata={"static": True})
    length: int = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})
    out: int = dataclasses.field(metadata={"static": True})
    factors: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """`(K, N)`, in codes."""
        return self.length, self.out

    @property
    def groups(self) -> int:
        """G, the number of scales along K."""
        return math.ceil(self.length / self.group)


def stored_bits(bits: int) -> int:
    """Bits a code takes in a block: the next of 2, 4, 8.

    >>> [stored_bits(b) for b in (1, 2, 3, 4, 5, 8)]
    [2, 2, 4, 4, 8, 8]
    """
    return next(width for width in (2, 4, 8) if bits <= width)


def block_inputs(bits: int) -> int:
    """Inputs (codes along K) in one block: 4, 8 or 16."""
    return BYTES * (8 // stored_bits(bits))


def group_blocks(length: int, group: int, bits: int) -> tuple[int, int]:
    """(blocks of a whole group, blocks in all) along K; the last group may be short."""
    span = block_inputs(bits)
    groups = math.ceil(length / group)
    whole = math.ceil(group / span)
    return whole, (groups - 1) * whole + math.ceil((length - (groups - 1) * group) / span)


def prepare(packed: PackedMatrix, *, column_sums: bool = True) -> PreparedMatrix:
    """`packed` in the CPU kernels' order; the same numbers, the same number of bits a code (3-bit codes take 4).

    Pure: works under `jit`, `vmap` and `eval_shape`. Without `column_sums` static activations with a zero point are refused.

    Raises:
        ValueError: fields that do not fit together.
        TypeError: `packed` is no `PackedMatrix`, or `column_sums` no flag.
    """
    check_matrix(packed)
    checks.flag("prepare: column_sums", column_sums)
    bits, offset = stored_bits(packed.bits), _offset(packed)
    codes = unpack_codes(packed.codes, packed.bits, packed.length, axis=0, signed=packed.signed)
    codes = (codes + jnp.asarray(offset & 127, codes.dtype)).astype(jnp.uint8) ^ jnp.uint8(offset & 128)
    out = packed.shape[1]
    codes = jnp.pad(codes, ((0, 0), (0, -out % CHANNELS)))
    sums = _column_sums(codes, packed) if column_sums and packed.codebook is None else None
    whole, total = group_blocks(packed.length, packed.group, packed.bits)
    span = block_inputs(packed.bits)
    if packed.groups > 1 and packed.group % span:
        short = packed.groups * packed.group - packed.length
        codes = jnp.pad(codes, ((0, short), (0, 0))).reshape(packed.groups, packed.group, codes.shape[1])
        codes = jnp.pad(codes, ((0, 0), (0, whole * span - packed.group), (0, 0)))
        codes = codes.reshape(packed.groups * whole * span, codes.shape[-1])
        codes = codes[: total * span]
    else:
        codes = jnp.pad(codes, ((0, total * span - packed.length), (0, 0)))
    tiles = codes.shape[1] // CHANNELS
    data = pack_codes(codes, bits, axis=0).reshape(total, BYTES, tiles, CHANNELS)
    blocks = data.transpose(2, 0, 3, 1).reshape(tiles, total, CHANNELS * BYTES)
    zeros = None if packed.zeros is None else _tiles(packed.zeros.astype(jnp.int16) + jnp.int16(offset))
    return PreparedMatrix(
        blocks=blocks,
        scales=_tiles(packed.scales),
        zeros=zeros,
        column_sums=None if sums is None else _tiles(sums),
        codebook=None if packed.codebook is None else jnp.pad(packed.codebook, (0, (1 << bits) - (1 << packed.bits))),
        bits=packed.bits,
        signed=packed.signed,
        length=packed.length,
        group=packed.group,
        out=out,
        factors=None if packed.factors is None else _tiles(packed.factors),
    )


def restore(prepared: PreparedMatrix) -> PackedMatrix:
    """The canonical matrix: the inverse of `prepare`, exact.

    Raises:
        ValueError: fields that do not fit together.
        TypeError: `prepared` is no `PreparedMatrix`.
    """
    check_prepared(prepared)
    bits, span = stored_bits(prepared.bits), block_inputs(prepared.bits)
    whole, total = group_blocks(prepared.length, prepared.group, prepared.bits)
    tiles, out, groups = prepared.blocks.shape[0], prepared.out, prepared.groups
    data = prepared.blocks.reshape(tiles, total, CHANNELS, BYTES).transpose(1, 3, 0, 2)
    data = data.reshape(total * BYTES, tiles * CHANNELS)[:, :out]
    codes = unpack_codes(data, bits, total * span, axis=0, signed=False).astype(jnp.uint8)
    if groups > 1 and prepared.group % span:
        codes = jnp.pad(codes, ((0, (groups * whole - total) * span), (0, 0))).reshape(groups, whole * span, out)
        codes = codes[:, : prepared.group].reshape(groups * prepared.group, out)
    codes = codes[: prepared.length]
    offset = _offset(prepared)
    codes = codes - jnp.uint8(offset)  # wraps to two's complement
    zeros = prepared.zeros
    if zeros is not None:
        zeros = (_untile(zeros, out) - jnp.int16(offset)).astype(jnp.int8 if prepared.signed else jnp.uint8)
    return PackedMatrix(
        codes=pack_codes(codes, prepared.bits, axis=0),
        scales=_untile(prepared.scales, out),
        zeros=zeros,
        codebook=None if prepared.codebook is None else prepared.codebook[: 1 << prepared.bits],
        bits=prepared.bits,
        signed=prepared.signed,
        length=prepared.length,
        group=prepared.group,
        factors=None if prepared.factors is None else _untile(prepared.factors, out),
    )


def check_prepared(prepared: PreparedMatrix) -> None:
    """Raises ValueError or TypeError where the arrays of `prepared` do not fit its integers."""
    checks.instance("prepared", prepared, PreparedMatrix, "prepare")
    checks.integer("PreparedMatrix.bits", prepared.bits, 1, 8)
    checks.integer("PreparedMatrix.length", prepared.length, 1)
    checks.integer("PreparedMatrix.group", prepared.group, 1, prepared.length)
    checks.integer("PreparedMatrix.out", prepared.out, 0)
    checks.flag("PreparedMatrix.signed", prepared.signed)
    for name in ("blocks", "scales", "zeros", "column_sums", "codebook", "factors"):
        if getattr(prepared, name) is not None or name in ("blocks", "scales"):
            checks.described(f"PreparedMatrix.{name}", getattr(prepared, name))
    _, total = group_blocks(prepared.length, prepared.group, prepared.bits)
    tiles = math.ceil(prepared.out / CHANNELS)
    if prepared.blocks.shape != (tiles, total, CHANNELS * BYTES) or prepared.blocks.dtype != jnp.uint8:
        raise ValueError(
            f"PreparedMatrix.blocks must be uint8 {(tiles, total, CHANNELS * BYTES)}, "
            f"got {prepared.blocks.dtype} {prepared.blocks.shape}; make it with prepare()"
        )
    for name in ("scales", "zeros", "column_sums", "factors"):
        table = getattr(prepared, name)
        groups = 1 if name == "scales" and prepared.factors is not None else prepared.groups
        if table is not None and table.shape != (tiles, groups, CHANNELS):
            raise ValueError(f"PreparedMatrix.{name} must have shape {(tiles, groups, CHANNELS)}, got {table.shape}")
    book, entries = prepared.codebook, 1 << stored_bits(prepared.bits)
    if book is not None and (book.shape != (entries,) or book.dtype != jnp.float32):
        raise ValueError(f"PreparedMatrix.codebook must be float32 ({entries},), got {book.dtype} {book.shape}")


def _offset(matrix: PackedMatrix | PreparedMatrix) -> int:
    """What stored codes have added to the logical ones."""
    return 1 << (matrix.bits - 1) if matrix.signed else 0


def _column_sums(codes: Array, packed: PackedMatrix) -> Array:
    largest = ((1 << packed.bits) - 1) * packed.group
    dtype = jnp.int16 if largest < 1 << 15 else jnp.int32
    short = packed.groups * packed.group - packed.length
    codes = jnp.pad(codes, ((0, short), (0, 0))).reshape(packed.groups, packed.group, codes.shape[1])
    return jnp.sum(codes, axis=1, dtype=jnp.int32).astype(dtype)


def _tiles(table: Array) -> Array:
    """`(G, N)` to `(ceil(N / 16), G, 16)`."""
    table = jnp.pad(table, ((0, 0), (0, -table.shape[1] % CHANNELS)))
    return lax.reshape(table, (table.shape[0], table.shape[1] // CHANNELS, CHANNELS)).swapaxes(0, 1)


def _untile(table: Array, out: int) -> Array:
    return table.swapaxes(0, 1).reshape(table.shape[1], table.shape[0] * CHANNELS)[:, :out]
