"""Large arrays a piece at a time: beside what goes in and what comes out, only one piece of either is held.

A loop inside a compiled program would copy its operands; this one is outside, and writes every piece into its place of a
buffer that is given away and got back (`jax.jit`'s ``donate_argnums``).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

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


def joined(count: int, make: Callable[[int], Any], axis: int) -> Any:
    """Returns the trees ``make(0), ..., make(count - 1)`` as one, their arrays joined along ``axis``, one made at a time.

    Static fields are those of the first; so are scalars.
    """
    first = make(0)
    leaves, tree = jax.tree.flatten(first)
    whole = [_grown(leaf, count, axis) for leaf in leaves]
    for i in range(count):
        parts = jax.tree.leaves(make(i)) if i else leaves
        whole = [
            _put(into, part, i * part.shape[axis], axis) if part.ndim else into
            for into, part in zip(whole, parts, strict=True)
        ]
        leaves = parts = []
        jax.block_until_ready(whole)  # else all pieces are on their way at once
    return jax.tree.unflatten(tree, whole)


def _grown(leaf: Array, count: int, axis: int) -> Array:
    if leaf.ndim == 0:
        return leaf
    shape = list(leaf.shape)
    shape[axis] *= count
    return jnp.zeros(shape, leaf.dtype)


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _put(into: Array, part: Array, start: Any, axis: int) -> Array:
    return lax.dynamic_update_slice_in_dim(into, part, start, axis)
