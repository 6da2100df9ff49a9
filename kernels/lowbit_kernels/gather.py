"""An embedding table in packed bytes, and the look-up that unpacks only the rows it takes.

STABLE: `PackedTable`, `pack_table`, `gather_rows`.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from lowbit_kernels import checks
from lowbit_kernels.layout import AnyArray, pack_codes, packed_length, unpack_codes
from lowbit_kernels.matrix import SCALE_DTYPES, ZERO_DTYPES


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedTable:
    """Packed rows of a `(V, D)` table: `row[v, d] = (codes[v, d] - zeros[v, d // group]) * scales[v, d // group]`.

    Attributes:
        codes: uint8 `(V, packed_length(D, bits))`, canonical layout along D.
        scales: `(V, G)` float32 or bfloat16, `G = ceil(D / group)`.
        zeros: `(V, G)` int8 or uint8, or None.
        bits, signed: of a code.
        width: D, in codes.
        group: codes along D that share a scale.
    """

    codes: Any
    scales: Any
    zeros: Any = None
    bits: int = dataclasses.field(metadata={"static": True})
    signed: bool = dataclasses.field(default=True, metadata={"static": True})
    width: int = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})


def pack_table(
    codes: Integer[AnyArray, "vocab width"],
    scales: Float[AnyArray, "vocab groups"],
    *,
    bits: int,
    group: int | None = None,
    zeros: Integer[AnyArray, "vocab groups"] | None = None,
    signed: bool = True,
) -> PackedTable:
    """Packed form of integer codes `(V, D)`; `group=None` is one scale a row.

    Raises:
        ValueError: shapes or dtypes that do not fit together.
        TypeError: what is no array, no integer or no flag.
    """
    checks.integer("pack_table: bits", bits, 1, 8)
    codes = checks.array("pack_table: codes", codes, "integer", 2)
    width = codes.shape[1]
    table = PackedTable(
        codes=pack_codes(codes, bits, axis=-1),
        scales=checks.array("pack_table: scales", scales),
        zeros=None if zeros is None else checks.array("pack_table: zeros", zeros),
        bits=bits,
        signed=signed,
        width=width,
        group=width if group is None else group,
    )
    _check(table)
    return table


def gather_rows(table: PackedTable, ids: Array, *, out_dtype: Any = jnp.float32) -> Float[Array, "... width"]:
    """Rows `ids` of the table, unpacked after the gather: no other row is touched.

    One float32 product of an exact level and its scale, then one cast to `out_dtype`. An id outside the table takes the
    nearest row, as `jnp.take(mode="clip")` does. Differentiable in `scales`.

    Raises:
        ValueError: a table whose fields do not fit together, ids that are no integers, an `out_dtype` of no floats.
        TypeError: what is no table, no array or no dtype.

    >>> t = pack_table(jnp.array([[1, -2, 3], [4, 5, -6]]), jnp.array([[0.5], [2.0]]), bits=4)
    >>> gather_rows(t, jnp.array([1, 0])).tolist()
    [[8.0, 10.0, -12.0], [0.5, -1.0, 1.5]]
    """
    _check(table)
    out_dtype = checks.float_dtype("gather_rows: out_dtype", out_dtype)
    ids = checks.array("gather_rows: ids", ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"gather_rows: ids must be integers, got {ids.dtype}")
    codes = jnp.take(table.codes, ids, axis=0, mode="clip")
    levels = unpack_codes(codes, table.bits, table.width, axis=-1, signed=table.signed).astype(jnp.int32)
    if table.zeros is not None:
        levels = levels - _expand(jnp.take(table.zeros, ids, axis=0, mode="clip").astype(jnp.int32), table)
    scales = _expand(jnp.take(table.scales, ids, axis=0, mode="clip").astype(jnp.float32), table)
    return (levels.astype(jnp.float32) * scales).astype(out_dtype)


def _expand(groups: Array, table: PackedTable) -> Array:
    return jnp.repeat(groups, table.group, axis=-1)[..., : table.width]


def _check(table: PackedTable) -> None:
    checks.instance("table", table, PackedTable, "pack_table")
    checks.integer("PackedTable.bits", table.bits, 1, 8)
    checks.integer("PackedTable.width", table.width, 1)
    checks.integer("PackedTable.group", table.group, 1, table.width)
    checks.flag("PackedTable.signed", table.signed)
    for name in ("codes", "scales", "zeros"):
        if getattr(table, name) is not None or name != "zeros":
            checks.described(f"PackedTable.{name}", getattr(table, name))
    expected = packed_length(table.width, table.bits)
    if table.codes.ndim != 2 or table.codes.dtype != jnp.uint8 or table.codes.shape[1] != expected:
        raise ValueError(
            f"PackedTable.codes must be uint8 (V, {expected}) for {table.width} codes of {table.bits} bits, "
            f"got {table.codes.dtype} {table.codes.shape}"
        )
    shape = (table.codes.shape[0], math.ceil(table.width / table.group))
    if table.scales.shape != shape or table.scales.dtype.name not in SCALE_DTYPES:
        raise ValueError(
            f"PackedTable.scales must be {shape} of {SCALE_DTYPES}, got {table.scales.dtype} {table.scales.shape}"
        )
    if table.zeros is not None and (table.zeros.shape != shape or table.zeros.dtype.name not in ZERO_DTYPES):
        raise ValueError(
            f"PackedTable.zeros must be {shape} of {ZERO_DTYPES}, got {table.zeros.dtype} {table.zeros.shape}"
        )
