"""A packed weight matrix: bytes, scales and the integers that say how to read them.

STABLE: `PackedMatrix` (fields and meaning), `pack_matrix`, `dequantize_matrix`.

`W[k, n] = (codes[k, n] - zeros[g, n]) * scales[g, n]`, `g = k // group`; with a codebook
`W[k, n] = codebook[codes[k, n]] * scales[g, n]`; with integer scales of groups
`W[k, n] = (codes[k, n] * factors[g, n]) * scales[0, n]`, whose parenthesis fits int8: the sum over all of K stays an integer,
and one float32 scale a channel follows it. The last group may be short.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Integer

from lowbit_kernels import checks
from lowbit_kernels.layout import AnyArray, pack_codes, packed_length, unpack_codes

SCALE_DTYPES = ("float32", "bfloat16")
ZERO_DTYPES = ("int8", "uint8")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedMatrix:
    """Packed weights of a `(K, N)` matrix; a pytree of arrays with static integers.

    Attributes:
        codes: uint8 bytes `(packed_length(K, bits), N)`, canonical layout (`layout.py`).
        scales: `(G, N)` float32 or bfloat16, `G = ceil(K / group)`. Per channel is `group = K`, so `G = 1`.
        zeros: `(G, N)` int8 or uint8 in units of codes, or None where symmetric.
        codebook: float32 table of `2**bits` entries read by unsigned codes (NF4: 16), or None.
        bits: bits of one code, 1 to 8.
        signed: codes are two's complement.
        length: K, in codes.
        group: codes along K that share a scale; 1 to K.
        factors: int8 `(G, N)` integer scales of groups, or None. Then `scales` is `(1, N)`, codes are signed and
            symmetric with 2 to 4 bits, and `code * factor` lies in [-128, 127] (0 .. 15 always fit 4 bits).
    """

    # Fields are Any: tree transformations put shapes, specs and sizes in them. `check_matrix` says what arrays must be.
    codes: Any
    scales: Any
    zeros: Any = None
    codebook: Any = None
    bits: int = dataclasses.field(metadata={"static": True})
    signed: bool = dataclasses.field(default=True, metadata={"static": True})
    length: int = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})
    factors: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """`(K, N)`, in codes."""
        return self.length, self.codes.shape[-1]

    @property
    def groups(self) -> int:
        """G, the number of scales along K."""
        return math.ceil(self.length / self.group)


def pack_matrix(
    codes: Integer[AnyArray, "in out"],
    scales: Float[AnyArray, "groups out"],
    *,
    bits: int,
    group: int | None = None,
    zeros: Integer[AnyArray, "groups out"] | None = None,
    signed: bool = True,
    codebook: Float[AnyArray, " levels"] | None = None,
    factors: Integer[AnyArray, "factors out"] | None = None,
) -> PackedMatrix:
    """Packed form of integer codes `(K, N)` and their scales `(G, N)`.

    `group=None` is per channel. With `factors` `(G, N)`, integer scales of groups, `scales` is `(1, N)`. Works under `jit`; codes outside the range of `bits` lose their high bits.

    Raises:
        ValueError: shapes or dtypes that do not fit together; both are named.
        TypeError: what is no array, no integer or no flag.

    >>> w = pack_matrix(jnp.array([[1, -2], [3, 4], [5, -8]]), jnp.ones((1, 2)), bits=4)
    >>> w.shape, w.codes.shape, w.groups
    ((3, 2), (2, 2), 1)
    """
    checks.integer("pack_matrix: bits", bits, 1, 8)
    codes = checks.array("pack_matrix: codes", codes, "integer")
    if codes.ndim != 2:
        raise ValueError(f"pack_matrix: codes must be (K, N), got shape {codes.shape}")
    length = codes.shape[0]
    tables = {"scales": scales, "zeros": zeros, "codebook": codebook, "factors": factors}
    tables = {
        name: None if x is None and name != "scales" else checks.array(f"pack_matrix: {name}", x)
        for name, x in tables.items()
    }
    packed = PackedMatrix(
        codes=pack_codes(codes, bits),
        **tables,
        bits=bits,
        signed=signed,
        length=length,
        group=length if group is None else group,
    )
    check_matrix(packed)
    if factors is not None and not (is_traced(codes) or is_traced(factors)):
        levels = np.asarray(codes, np.int64) * np.repeat(np.asarray(factors, np.int64), packed.group, axis=0)[:length]
        if levels.size and (levels.min() < -128 or levels.max() > 127):
            raise ValueError(
                f"pack_matrix: codes times factors must fit int8, got [{levels.min()}, {levels.max()}]: use smaller factors"
            )
    return packed


def is_traced(array: object) -> bool:
    """Whether the values are unknown: `array` belongs to a trace."""
    return isinstance(array, Tracer)


def merge_factors(packed: PackedMatrix) -> PackedMatrix:
    """The same numbers as 8-bit codes with one scale a channel: what an implementation without integer scales runs."""
    if packed.factors is None:
        return packed
    codes = unpack_codes(packed.codes, packed.bits, packed.length, axis=0, signed=True)
    codes = codes.astype(jnp.int32) * expand_groups(packed.factors.astype(jnp.int32), packed)
    return pack_matrix(codes, packed.scales, bits=8)


def check_matrix(packed: PackedMatrix) -> None:
    """Raises ValueError or TypeError where the fields of `packed` do not fit together. Reads shapes and dtypes only."""
    checks.instance("packed", packed, PackedMatrix, "pack_matrix")
    codes, scales, zeros, codebook = packed.codes, packed.scales, packed.zeros, packed.codebook
    checks.integer("PackedMatrix.bits", packed.bits, 1, 8)
    checks.integer("PackedMatrix.length", packed.length, 1)
    checks.integer("PackedMatrix.group", packed.group, 1, packed.length)
    checks.flag("PackedMatrix.signed", packed.signed)
    for name in ("codes", "scales", "zeros", "codebook", "factors"):
        if getattr(packed, name) is not None or name in ("codes", "scales"):
            checks.described(f"PackedMatrix.{name}", getattr(packed, name))
    expected = packed_length(packed.length, packed.bits)
    if codes.ndim != 2 or codes.dtype != jnp.uint8 or codes.shape[0] != expected:
        raise ValueError(
            f"PackedMatrix.codes must be uint8 ({expected}, N) for K = {packed.length} codes of {packed.bits} bits, "
            f"got {codes.dtype} {codes.shape}"
        )
    table = (packed.groups, codes.shape[1])
    factors = packed.factors
    if factors is not None:
        if factors.shape != table or factors.dtype != jnp.int8:
            raise ValueError(f"PackedMatrix.factors must be int8 (G, N) = {table}, got {factors.dtype} {factors.shape}")
        if not packed.signed or zeros is not None or codebook is not None or not 2 <= packed.bits <= 4:
            raise ValueError(
                f"PackedMatrix.factors take signed symmetric codes of 2 to 4 bits, got {packed.bits} bits, signed={packed.signed}"
            )
        table = (1, codes.shape[1])
    if scales.shape != table or scales.dtype.name not in SCALE_DTYPES:
        raise ValueError(
            f"PackedMatrix.scales must be (G, N) = {table} of {' or '.join(SCALE_DTYPES)}, "
            f"got {scales.dtype} {scales.shape}; G = ceil(K / group) = ceil({packed.length} / {packed.group}), "
            f"codes are (K, N) = {packed.shape}"
        )
    if zeros is not None and (zeros.shape != table or zeros.dtype.name not in ZERO_DTYPES):
        raise ValueError(
            f"PackedMatrix.zeros must be (G, N) = {table} of {' or '.join(ZERO_DTYPES)}, got {zeros.dtype} {zeros.shape}"
        )
    if codebook is not None:
        levels = 1 << packed.bits
        if codebook.shape != (levels,) or codebook.dtype != jnp.float32:
            raise ValueError(
                f"PackedMatrix.codebook must be float32 ({levels},) for {packed.bits} bits, "
                f"got {codebook.dtype} {codebook.shape}"
            )
        if packed.signed or zeros is not None:
            raise ValueError(
                "PackedMatrix.codebook is read by unsigned codes without zeros: pass signed=False, zeros=None"
            )


def levels_matrix(packed: PackedMatrix) -> Array:
    """`codes - zeros` as int32 `(K, N)`, exact; for a codebook its float32 entries."""
    packed = merge_factors(packed)
    codes = unpack_codes(packed.codes, packed.bits, packed.length, axis=0, signed=packed.signed)
    if packed.codebook is not None:
        return packed.codebook[codes.astype(jnp.int32)]
    codes = codes.astype(jnp.int32)
    if packed.zeros is not None:
        codes = codes - expand_groups(packed.zeros.astype(jnp.int32), packed)
    return codes


def dequantize_matrix(packed: PackedMatrix) -> Float[Array, "in out"]:
    """W as float32 `(K, N)`: one product of an exact level and its scale, rounded once."""
    check_matrix(packed)
    packed = merge_factors(packed)
    scales = expand_groups(packed.scales.astype(jnp.float32), packed)
    return levels_matrix(packed).astype(jnp.float32) * scales


def expand_groups(table: Array, packed: Any) -> Array:
    """`(G, N)` repeated along K to `(K, N)`; the last group may be short."""
    return jnp.repeat(table, packed.group, axis=0)[: packed.length]
