"""Large arrays a piece at a time: beside what goes in and what comes out, only one piece of either is held.

A loop inside a compiled program would copy its operands; this one is outside, and writes every piece into its place of a
buffer that is given away and got back (`jax.jit`'s ``donate_argnums``).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lowbit.core.checks import is_traced
from lowbit.core.qtensor import QTensor
from lowbit_kernels.cpu.prepare import CHANNELS

ELEMENTS = 1 << 24
"""Of a piece."""


def count_of(size: int, length: int, unit: int = 1) -> int:
    """Returns in how many equal pieces an axis is cut: the fewest of at most `ELEMENTS` elements, multiples of ``unit``.

    Args:
        size: elements of the whole array.
        length: of the axis.
        unit: what the length of a piece must be a multiple of.

    Example:
        >>> count_of(3 * ELEMENTS, 48, 16), count_of(ELEMENTS, 48, 16), count_of(3 * ELEMENTS, 47, 16)
        (3, 1, 1)
    """
    if length % unit or size <= 2 * ELEMENTS:
        return 1
    units = length // unit
    return next(n for n in range(1, units + 1) if units % n == 0 and (size <= ELEMENTS * n or n == units))


def joined(count: int, make: Callable[[int], Any], axis: int, *, least: int = 1) -> Any:
    """Returns the trees ``make(0), ..., make(count - 1)`` as one, their arrays joined along ``axis``, one made at a time.

    Static fields are those of the first; so are arrays of fewer axes than ``least``.
    """
    first = make(0)
    leaves, tree = jax.tree.flatten(first)
    whole = [_grown(leaf, count, axis) if leaf.ndim >= least else leaf for leaf in leaves]
    for i in range(count):
        parts = jax.tree.leaves(make(i)) if i else leaves
        whole = [
            _put(into, part, i * part.shape[axis], axis) if part.ndim >= least else into
            for into, part in zip(whole, parts, strict=True)
        ]
        leaves = parts = []
        jax.block_until_ready(whole)  # else all pieces are on their way at once
    return jax.tree.unflatten(tree, whole)


def layers_in_pieces(build: Callable[[QTensor], Any], q: QTensor) -> Any:
    """What ``build`` makes of stacked layers, of many large ones a few at a time."""
    layers = q.shape[0]
    count = count_of(math.prod(q.shape), layers)
    if count == 1 or is_traced(q.codes):
        return build(q)
    size = layers // count

    def piece(i: int) -> Any:
        return build(jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, i * size, size), q))

    return joined(count, piece, 0)


def matrix_in_pieces(
    build: Callable[[QTensor], Any], contract: tuple[int, ...], batch: tuple[int, ...], q: QTensor
) -> Any:
    """What ``build`` makes of a weight, of a large one a few of its matrices at a time, or of its output channels: whole tiles."""
    rank, shape = q.ndim, q.shape
    free = [i for i in range(rank) if i not in (*contract, *batch) and shape[i] > 1]
    along = batch[0] if batch else free[0] if free else 0
    rest = math.prod(shape[i] for i in free[1:])
    count = (
        count_of(math.prod(shape), shape[along], 1 if batch else CHANNELS // math.gcd(CHANNELS, rest)) if free else 1
    )
    if count == 1 or is_traced(q.codes) or q.packed_axis is None or q.packed_axis[0] + rank == along:
        return build(q)
    if isinstance(q.scale, QTensor):
        if q.spec.scale.factors(q) is not None:
            return build(q)
        q = dataclasses.replace(q, scale=q.scale_values)  # as `matrix_of` widens it
    size = shape[along] // count

    def piece(i: int) -> Any:
        def part(x: Array) -> Array:
            is_whole = x.ndim != rank or x.shape[along] != shape[along]
            return x if is_whole else lax.dynamic_slice_in_dim(x, i * size, size, axis=along)

        return build(jax.tree.map(part, q))

    if batch:
        return joined(count, piece, 0)
    # What has one axis is a codebook, which all channels share.
    return dataclasses.replace(joined(count, piece, 0, least=2), out=shape[along] * rest)


def _grown(leaf: Array, count: int, axis: int) -> Array:
    shape = list(leaf.shape)
    shape[axis] *= count
    return jnp.zeros(shape, leaf.dtype)


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _put(into: Array, part: Array, start: Any, axis: int) -> Array:
    return lax.dynamic_update_slice_in_dim(into, part, start, axis)
