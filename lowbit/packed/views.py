"""Packed weights as the kernels of accelerators read them: the canonical matrix, mostly the bytes as they are stored.

It is the view of `lowbit.core.matrix` taken of packed bytes: what is here is when bytes allow that, and what a kernel needs beside.

A weight whose codes share bytes along the last axis it is contracted over is that matrix already, up to the order of its
axes. So nothing needs to be prepared for a TPU, and a program that is lowered for another machine than this one finds the
weight it needs.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lowbit.core.matrix import MatrixView
from lowbit.core.qtensor import QTensor
from lowbit.core.spec import Format
from lowbit_kernels import PackedMatrix
from lowbit_kernels.matrix import SCALE_DTYPES

MOVES = "moves the packed weight in every call: lowbit.prepare(plan, qparams, platform=...) does it once"
REPACKS = "its bytes run along another axis than it contracts: call lowbit.prepare(plan, qparams, platform=...) before"
MERGES = "its integer scales of groups are multiplied into 8-bit codes: call lowbit.prepare(plan, qparams, platform=...) before"


def group_of(lengths: Sequence[int], blocks: Sequence[int]) -> int | None:
    """Returns how many neighbours along flattened axes share a scale, or None where that differs, or is 1 of several."""
    if all(b >= n for n, b in zip(lengths, blocks, strict=True)):
        return math.prod(lengths)
    first = next((i for i, b in enumerate(blocks) if b > 1), None)
    if first is None or any(b < n for n, b in zip(lengths[first + 1 :], blocks[first + 1 :], strict=True)):
        return None
    if first > 0 and lengths[first] % blocks[first]:
        return None
    return min(blocks[first], lengths[first]) * math.prod(lengths[first + 1 :])


def levels_of(form: Format) -> Array:
    """Returns the level of every code of a format, ``(2**bits,)`` float32: the kernels' table."""
    return form.decode(jnp.arange(1 << form.bits, dtype=jnp.uint8))


def note_of(q: QTensor, contract: tuple[int, ...], batch: tuple[int, ...], stack: int) -> str:
    """Returns what to say of the canonical matrix of a packed weight: nothing where it is the bytes as they are stored."""
    shape, bits = q.shape[stack:], q.spec.format.bits
    if q.stage != "packed" or q.packed_axis is None or not contract:
        return REPACKS
    if q.spec.scale.merged_spec(q.spec) is not q.spec:
        return MERGES
    last = contract[-1]
    if bits < 8 and q.packed_axis[0] + len(shape) != last:
        return REPACKS
    if len(contract) > 1 and (shape[last] * bits % 8 or (8 % bits and shape[last] % 8)):
        return REPACKS  # the bytes of one contracted row end inside the next
    order = [*batch, *contract, *(i for i in range(len(shape)) if i not in (*contract, *batch))]
    return "" if [i for i in order if shape[i] > 1] == [i for i in range(len(shape)) if shape[i] > 1] else MOVES


def view_of(q: QTensor, contract: tuple[int, ...], batch: tuple[int, ...], stack: int) -> Any:
    """Returns the canonical matrix of a packed weight; None where its bytes lie otherwise (`note_of`).

    Args:
        q: packed.
        contract: the contracted axes, without layers.
        batch: the axes along which there is a matrix for each, without layers.
        stack: leading axes of layers, which every array of the matrix keeps.
    """
    if note_of(q, contract, batch, stack) in (REPACKS, MERGES):
        return None
    shape, bits = q.shape[stack:], q.spec.format.bits
    view = MatrixView(tuple(shape), contract, batch)
    blocks = q.blocks[stack:]
    group = group_of([shape[i] for i in contract], [blocks[i] for i in contract])
    assert group is not None
    is_plain = not isinstance(q.scale, QTensor) and q.scale.dtype.name in SCALE_DTYPES
    scales: Any = q.scale if is_plain else q.scale_values
    matrix = PackedMatrix(
        codes=_matrices(q.codes, view, stack),
        scales=_table(scales, view, stack),
        zeros=None if q.zero is None else _table(q.zero, view, stack),
        codebook=None if q.spec.format.is_integer else _codebook(q, stack, batch),
        bits=bits,
        signed=q.spec.format.is_signed,
        length=view.size[1],
        group=group,
    )
    if not batch:
        matrix = jax.tree.map(lambda x: jnp.squeeze(x, stack), matrix)
    return matrix


def _codebook(q: QTensor, stack: int, batch: tuple[int, ...]) -> Array:
    """The table of a format, one for every layer and batch: each matrix of a stack has its own arrays."""
    levels = levels_of(q.spec.format)
    many = (*q.shape[:stack], math.prod(q.shape[stack + i] for i in batch))
    return jnp.broadcast_to(levels, (*many, *levels.shape))


def _table(x: Array, view: MatrixView, stack: int) -> Array:  # (layers, batch, groups, N)
    """Scales or zero points: one number for the whole of a free axis is repeated, a number a group, never a weight."""
    sizes = [n if i in view.contract else view.shape[i] for i, n in enumerate(x.shape[stack:])]
    return _matrices(jnp.broadcast_to(x, (*x.shape[:stack], *sizes)), view, stack)


def _matrices(x: Array, view: MatrixView, stack: int) -> Any:  # (layers, batch, K, N)
    """An array with the view's axes, each as long as it is there: of bytes and of groups K has fewer."""
    read: Any = dataclasses.replace(view, shape=tuple(x.shape[stack:])).matrices
    for _ in range(stack):
        read = jax.vmap(read)
    return read(x)
