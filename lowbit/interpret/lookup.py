"""Embedding look-up on a quantized table: rows of codes, rows of scales, then the value."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.packed.bits import unpack
from lowbit.program.compat import rebind


def lookup(eqn: Any, table: QTensor, indices: Array) -> Array:
    """Returns the rows of ``table`` at ``indices``, dequantized: the gather ``eqn`` on codes and on scales.

    Rows out of range become what ``eqn`` makes of them: NaN where it fills, the last row where it clips.

    Args:
        eqn: a gather of whole rows along one axis.
        table: levels, codes or packed bytes; bytes are taken apart after the gather, where the rows do not share them.
        indices: as the gather takes them.
    """
    numbers = eqn.params["dimension_numbers"]
    axis = numbers.collapsed_slice_dims[0]
    n = table.shape[axis]
    if table.packed_axis is not None and table.packed_axis[0] + table.ndim == axis:
        table = unpack(table)

    def rows(x: Array, mode: Any) -> Array:
        sizes = tuple(1 if i == axis else size for i, size in enumerate(x.shape))
        return rebind(eqn, [x, indices], slice_sizes=sizes, mode=mode)[0]

    mode = eqn.params["mode"]
    codes = rows(table.codes, lax.GatherScatterMode.CLIP)
    is_per_row = table.scale_values.shape[axis] == n
    scale = table.scale_values if is_per_row else jnp.repeat(table.scale_values, n, axis=axis)
    zero = table.zero
    if zero is not None:
        zero = zero if is_per_row else jnp.repeat(zero, n, axis=axis)
        zero = rows(zero, lax.GatherScatterMode.CLIP)
    rank = codes.ndim
    offsets = list(numbers.offset_dims)
    kept = [i for i in range(table.ndim) if i != axis]

    def moved(a: int) -> int:
        return offsets[kept.index(a + table.ndim)] - rank

    groups = tuple((moved(a), size) for a, size in table.groups if a + table.ndim != axis)
    packed = None if table.packed_axis is None else (moved(table.packed_axis[0]), table.packed_axis[1])
    scale = rows(scale, mode)
    return dataclasses.replace(
        table, codes=codes, scale=scale, zero=zero, groups=groups, packed_axis=packed
    ).dequantize()
