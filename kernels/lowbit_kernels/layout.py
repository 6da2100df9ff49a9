"""Bytes of packed codes: the canonical layout, drawn once, pinned by golden bytes in the tests.

STABLE: `pack_codes`, `unpack_codes` and the drawing below. Files are written in this layout.

Codes are packed along one axis (the contracted axis K of a weight, axis -2 of `(K, N)`). Neighbours in K share
a byte; the first neighbour takes the lowest bits. Every other axis keeps its place. `b7 .. b0` are the bits of one
byte, `k` counts codes along the packed axis, `c[k]` is a code:

    bits 8   byte k   =  c[k]
    bits 4   byte j   =  c[2j+1] b7..b4 | c[2j] b3..b0
    bits 2   byte j   =  c[4j+3] b7 b6  | c[4j+2] b5 b4 | c[4j+1] b3 b2 | c[4j] b1 b0
    bits 1   byte j   =  c[8j+7] b7 | ... | c[8j] b0
    bits 3   bytes 3j, 3j+1, 3j+2 are one little-endian 24-bit word holding c[8j] .. c[8j+7], c[8j] lowest:
             byte 3j    =  c[8j+2] low 2 bits b7 b6 | c[8j+1] b5..b3 | c[8j] b2..b0
             byte 3j+1  =  c[8j+5] low bit b7 | c[8j+4] b6..b4 | c[8j+3] b3..b1 | c[8j+2] high bit b0
             byte 3j+2  =  c[8j+7] b7..b5 | c[8j+6] b4..b2 | c[8j+5] high 2 bits b1 b0
    bits 5, 6, 7 follow the rule of 3: eight codes are one little-endian word of `bits` bytes.

A signed code is stored in two's complement of its width (int4 -1 is 0b1111), an unsigned code as it is. An axis whose
length does not fill its last byte (its last word for 3, 5, 6, 7 bits) is padded with code 0. The packed length is
`packed_length(length, bits)`: `ceil(length * bits / 8)` for 1, 2, 4, 8 bits, `bits * ceil(length / 8)` otherwise.

Example, int4 codes [1, -2, 7, -8, 3] along K: bytes 0xE1 0x87 0x03.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int8, Integer, UInt8

from lowbit_kernels import checks

AnyArray = Array | np.ndarray
BITS = (1, 2, 3, 4, 5, 6, 7, 8)


def packed_length(length: int, bits: int) -> int:
    """Bytes along the packed axis for `length` codes of `bits` bits.

    >>> packed_length(5, 4), packed_length(5, 2), packed_length(9, 3), packed_length(5, 8)
    (3, 2, 6, 5)
    """
    codes, size = _word("packed_length", bits)
    length = checks.integer("packed_length: length", length, 0)
    return math.ceil(length / codes) * size


def pack_codes(codes: Integer[AnyArray, "..."], bits: int, axis: int = -2) -> UInt8[Array, "..."]:
    """Bytes of `codes` in the canonical layout of this module.

    Pure integer arithmetic; works under `jit`, `vmap` and `jax.eval_shape`. A code outside the range of `bits` keeps
    its low bits only: range is the caller's to check, since values are not known under `jit`.

    Args:
        codes: integer codes of any rank, signed or unsigned.
        bits: 1 to 8, bits of one code.
        axis: the axis to pack along; -2 is K of a `(K, N)` weight.

    Returns:
        uint8, shape of `codes` with `axis` replaced by `packed_length(length, bits)`.

    Raises:
        ValueError: `bits` outside 1..8 or `axis` outside the rank.
        TypeError: `codes` are no array of integers, or `bits` or `axis` no integer.

    >>> [hex(b) for b in np.asarray(pack_codes(jnp.array([1, -2, 7, -8, 3]), 4, axis=0))]
    ['0xe1', '0x87', '0x3']
    """
    codes = checks.array("pack_codes: codes", codes, "integer")
    _word("pack_codes", bits)
    return _packed(codes, int(bits), _axis("pack_codes: codes", codes.ndim, axis))


# One program a shape, also where they are called eagerly; inlined into a trace.
@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def _packed(codes: Array, bits: int, axis: int) -> Array:
    count, size = _word("pack_codes", bits)
    codes = codes.astype(jnp.uint8)
    if bits == 8:
        return codes
    padding = [(0, 0)] * codes.ndim
    padding[axis] = (0, -codes.shape[axis] % count)
    codes = jnp.pad(codes & _u8((1 << bits) - 1), padding)
    words = _split(codes, axis, count)
    planes = [_plane(words, axis + 1, k) for k in range(count)]
    out = []
    for byte in range(size):
        value = jnp.zeros_like(planes[0])
        for k, plane in enumerate(planes):
            shift = k * bits - byte * 8  # where bit 0 of code k lies, counted from bit 0 of this byte
            if -bits < shift < 8:
                value = value | (plane << _u8(shift) if shift >= 0 else plane >> _u8(-shift))
        out.append(value)
    return _merge(jnp.stack(out, axis + 1), axis)


def unpack_codes(
    packed: UInt8[AnyArray, "..."],
    bits: int,
    length: int,
    axis: int = -2,
    signed: bool = True,  # noqa: FBT001, FBT002
) -> Int8[Array, "..."] | UInt8[Array, "..."]:
    """Codes of `packed`: the inverse of `pack_codes`, without its padding.

    Args:
        packed: uint8 bytes in the canonical layout.
        bits: 1 to 8, bits of one code.
        length: number of codes along `axis`, in codes.
        axis: the packed axis.
        signed: codes are two's complement; otherwise they are unsigned.

    Returns:
        int8, except uint8 for unsigned codes of 8 bits (which int8 cannot hold); `axis` has `length` codes.

    Raises:
        ValueError: `packed` has not `packed_length(length, bits)` bytes along `axis`, or bad `bits` or `axis`.
        TypeError: `packed` is no uint8 array, or `bits`, `length` or `axis` no integer, or `signed` no flag.

    >>> unpack_codes(jnp.array([0xE1, 0x87, 0x03], jnp.uint8), 4, 5, axis=0).tolist()
    [1, -2, 7, -8, 3]
    """
    packed = checks.array("unpack_codes: packed", packed)
    if packed.dtype != jnp.uint8:
        raise TypeError(f"unpack_codes: packed bytes must be uint8, got {packed.dtype}")
    checks.flag("unpack_codes: signed", signed)
    axis = _axis("unpack_codes: packed", packed.ndim, axis)
    count, size = _word("unpack_codes", bits)
    expected = math.ceil(checks.integer("unpack_codes: length", length, 0) / count) * size
    if packed.shape[axis] != expected:
        raise ValueError(
            f"unpack_codes: {length} codes of {bits} bits take {expected} bytes along axis {axis}, "
            f"got packed of shape {packed.shape}; pass the number of codes as `length`"
        )
    return _unpacked(packed, int(bits), int(length), axis, bool(signed))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4), inline=True)
def _unpacked(packed: Array, bits: int, length: int, axis: int, signed: bool) -> Array:  # noqa: FBT001
    if bits == 8:
        return jax.lax.bitcast_convert_type(packed, jnp.int8) if signed else packed
    count, size = _word("unpack_codes", bits)
    words = _split(packed, axis, size)
    planes = [_plane(words, axis + 1, byte) for byte in range(size)]
    out = []
    for k in range(count):
        value = jnp.zeros_like(planes[0])
        for byte, plane in enumerate(planes):
            shift = k * bits - byte * 8
            if -bits < shift < 8:
                value = value | (plane >> _u8(shift) if shift >= 0 else plane << _u8(-shift))
        out.append(value)
    codes = _merge(jnp.stack(out, axis + 1), axis)
    codes = jax.lax.slice_in_dim(codes, 0, length, axis=axis)
    codes = jax.lax.bitcast_convert_type(codes << _u8(8 - bits), jnp.int8 if signed else jnp.uint8)
    codes = codes >> jnp.asarray(8 - bits, codes.dtype)  # arithmetic for int8: this extends the sign
    return codes.astype(jnp.int8)


def code_range(bits: int, signed: bool) -> tuple[int, int]:  # noqa: FBT001
    """Smallest and largest code of a width of 1 to 8 bits.

    >>> code_range(4, True), code_range(8, False)
    ((-8, 7), (0, 255))
    """
    _word("code_range", bits)
    checks.flag("code_range: signed", signed)
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def _plane(x: Array, axis: int, index: int) -> Array:
    """`x` at a static `index` of `axis`, that axis dropped."""
    return jax.lax.index_in_dim(x, index, axis, keepdims=False)


def _word(what: str, bits: int) -> tuple[int, int]:
    """(codes, bytes) of the smallest whole number of bytes."""
    bits = checks.integer(f"{what}: bits", bits, BITS[0], BITS[-1])
    return (8 // bits, 1) if 8 % bits == 0 else (8, bits)


def _axis(what: str, ndim: int, axis: int) -> int:
    axis = checks.integer(f"axis of {what}", axis)
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis {axis} is outside {what}, an array of rank {ndim}")
    return axis % ndim


def _split(x: Array, axis: int, size: int) -> Array:
    return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])


def _merge(x: Array, axis: int) -> Array:
    return x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])


def _u8(value: int) -> Array:
    return jnp.asarray(value, jnp.uint8)
