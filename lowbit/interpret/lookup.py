"""Look-ups in a quantized table: codes and scales are picked alike, whatever the table's granularity."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.packed.bits import unpack
from lowbit.program.compat import rebind
from lowbit.program.eqn import Eqn

from . import picks


def lookup(eqn: Eqn, table: QTensor, indices: Sequence[Any]) -> Array:
    """Returns the part of ``table`` that ``eqn`` picks, dequantized.

    Indices out of range become what ``eqn`` makes of them: its fill value where it fills, the last row where it clips.

    Args:
        eqn: a gather or a dynamic slice.
        table: levels, codes or packed bytes; bytes are taken apart after the look-up, where what is picked does not share
            them.
        indices: its further operands.
    """
    picked = pick(eqn, table, indices).dequantize()
    fill = eqn.params.get("fill_value")
    if not _fills(eqn) or fill is None or math.isnan(fill):
        return picked
    (inside,) = rebind(eqn, [jnp.ones(table.shape, jnp.int8), *indices], fill_value=0)
    return jnp.where(inside == 1, picked, jnp.asarray(fill, picked.dtype))


def _fills(eqn: Eqn) -> bool:
    return eqn.params.get("mode") == lax.GatherScatterMode.FILL_OR_DROP


def pick(eqn: Eqn, table: QTensor, indices: Sequence[Any]) -> QTensor:
    """Returns the part of ``table`` that ``eqn`` picks, quantized as the table is.

    What is out of range has a scale of NaN where ``eqn`` fills.

    Args:
        eqn: a gather or a dynamic slice.
        table: levels, codes or packed bytes.
        indices: its further operands.
    """
    rank, where = table.ndim, picks.offsets(eqn)
    cut = _cut(eqn, table.shape)
    if table.packed_axis is not None and table.packed_axis[0] + rank in cut:
        table = unpack(table)
    near: dict[str, Any] = {"mode": lax.GatherScatterMode.CLIP, "fill_value": None} if _has_mode(eqn) else {}
    fill: dict[str, Any] = {"fill_value": jnp.nan if _fills(eqn) else None} if _has_mode(eqn) else {}

    def per_element(x: Any) -> Array:
        """A scale or zero point with an entry per element along the axes that are cut."""
        for i in cut:
            if x.shape[i] not in (1, table.shape[i]):
                x = lax.slice_in_dim(jnp.repeat(x, table.blocks[i], axis=i), 0, table.shape[i], axis=i)
        return x

    codes = part(eqn, table.codes, indices, table.shape, **near)
    if table.spec.merged != table.spec and isinstance(table.scale, QTensor):  # integers of groups stay integers
        inner = unpack(table.scale)
        levels = part(eqn, per_element(inner.codes), indices, table.shape, **near)
        own = part(eqn, per_element(inner.scale), indices, table.shape, **fill)
        scale: Any = dataclasses.replace(inner, codes=levels, scale=own)
    else:
        scale = part(eqn, per_element(table.scale_values), indices, table.shape, **fill)
    zero = None if table.zero is None else per_element(table.zero)
    packed = table.packed_axis
    return QTensor(
        codes,
        scale,
        None if zero is None else part(eqn, zero, indices, table.shape, **near),
        table.spec,
        table.dtype,
        tuple((where[a + rank] - codes.ndim, size) for a, size in table.groups if a + rank not in cut),
        stage=table.stage,
        packed_axis=None if packed is None else (where[packed[0] + rank] - codes.ndim, packed[1]),
    )


def part(eqn: Eqn, x: Array, indices: Sequence[Any], shape: Sequence[int], **changes: Any) -> Array:
    """Returns what ``eqn`` picks of an array that broadcasts to its table, or is shorter along axes that it takes whole.

    Args:
        eqn: a gather or a dynamic slice.
        x: the array.
        indices: the further operands of ``eqn``.
        shape: of the table.
        **changes: of the parameters of ``eqn``.
    """
    cut = _cut(eqn, shape)
    for i in cut:
        if x.shape[i] != shape[i]:
            x = jnp.repeat(x, shape[i], axis=i)
    sizes = tuple(eqn.params["slice_sizes"][i] if i in cut else n for i, n in enumerate(x.shape))
    return rebind(eqn, [x, *indices], slice_sizes=sizes, **changes)[0]


def _cut(eqn: Eqn, shape: Sequence[int]) -> list[int]:
    """The axes of a table that are not taken whole, or that an index replaces."""
    where, sizes = picks.offsets(eqn), eqn.params["slice_sizes"]
    return [i for i, n in enumerate(shape) if sizes[i] != n or i not in where]


def _has_mode(eqn: Eqn) -> bool:
    return eqn.primitive.name == "gather"
