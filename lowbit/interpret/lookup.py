"""Look-ups in a quantized table: codes and scales are picked alike, whatever the table's granularity."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.packed.bits import unpack

from . import picks
from .compat import rebind


def lookup(eqn: Any, table: QTensor, indices: Sequence[Any]) -> Array:
    """Returns the part of ``table`` that ``eqn`` picks, dequantized.

    Indices out of range become what ``eqn`` makes of them: its fill value where it fills, the last row where it clips.

    Args:
        eqn: a gather or a dynamic slice.
        table: levels, codes or packed bytes; bytes are taken apart after the look-up, where what is picked does not share
            them.
        indices: its further operands.
    """
    found = pick(eqn, table, indices).dequantize()
    fill = eqn.params.get("fill_value")
    if not _fills(eqn) or fill is None or math.isnan(fill):
        return found
    (inside,) = rebind(eqn, [jnp.ones(table.shape, jnp.int8), *indices], fill_value=0)
    return jnp.where(inside == 1, found, jnp.asarray(fill, found.dtype))


def _fills(eqn: Any) -> bool:
    return eqn.params.get("mode") == lax.GatherScatterMode.FILL_OR_DROP


def pick(eqn: Any, table: QTensor, indices: Sequence[Any]) -> QTensor:
    """Returns the part of ``table`` that ``eqn`` picks, quantized as the table is; what is out of range has a scale of NaN
    where ``eqn`` fills.

    Args:
        eqn: a gather or a dynamic slice.
        table: levels, codes or packed bytes.
        indices: its further operands.
    """
    rank, sizes = table.ndim, eqn.params["slice_sizes"]
    where = picks.offsets(eqn)
    cut = {i for i in range(rank) if sizes[i] != table.shape[i] or i not in where}
    if table.packed_axis is not None and table.packed_axis[0] + rank in cut:
        table = unpack(table)

    def taken(x: Array, *, fills: bool) -> Array:
        changes: dict[str, Any] = {"slice_sizes": tuple(sizes[i] if i in cut else n for i, n in enumerate(x.shape))}
        if eqn.primitive.name == "gather":
            changes["mode"] = eqn.params["mode"] if fills else lax.GatherScatterMode.CLIP
            changes["fill_value"] = jnp.nan if fills and _fills(eqn) else None
        return rebind(eqn, [x, *indices], **changes)[0]

    def per_element(x: Array) -> Array:
        """A scale or zero point with an entry per element along the axes that are cut."""
        for i in cut:
            n = table.shape[i]
            if x.shape[i] != n:
                x = lax.slice_in_dim(jnp.repeat(x, blocks[i], axis=i), 0, n, axis=i)
        return x

    blocks = table.blocks
    codes = taken(table.codes, fills=False)
    groups = tuple((where[a + rank] - codes.ndim, size) for a, size in table.groups if a + rank not in cut)
    packed = table.packed_axis
    if packed is not None:
        packed = where[packed[0] + rank] - codes.ndim, packed[1]
    return QTensor(
        codes,
        taken(per_element(table.scale_values), fills=True),
        None if table.zero is None else taken(per_element(table.zero), fills=False),
        table.spec,
        table.dtype,
        groups,
        stage=table.stage,
        packed_axis=packed,
    )
