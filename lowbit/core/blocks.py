"""Blocks: which elements of an array share one scale.

A granularity is nothing but the *shape of the scale*. Along every axis of length ``n`` the scale has
``ceil(n / block)`` entries; ``block = n`` is one scale for the axis, ``block = 1`` one per element, anything between
a group, whose last member may be short. One code path serves them all.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Shaped

Dim = Any
"""The length of an axis: an int, or a symbolic dimension of `jax.export` while a model is traced for an open batch."""


def scale_shape(shape: Sequence[Dim], blocks: Sequence[Dim]) -> tuple[Dim, ...]:
    """Returns the shape of the scale of an array of ``shape`` cut into ``blocks`` (elements per scale, per axis).

    Example:
        >>> scale_shape((70, 8), (32, 1))
        (3, 8)
    """
    if len(shape) != len(blocks):
        raise ValueError(f"blocks {tuple(blocks)} must have one entry per axis of the shape {tuple(shape)}")
    return tuple(1 if n in (0, block) else math.ceil(n / block) for n, block in zip(shape, blocks, strict=True))


def is_split(n: Dim, block: Dim) -> bool:
    """Returns whether an axis is cut into groups. ``n`` may be a symbolic dimension: it is its own block, and compares."""
    return block != n and 1 < block < n


def split(x: Shaped[Array, "..."], blocks: Sequence[Dim], fill: float = 0) -> Shaped[Array, "..."]:
    """Returns ``x`` with every grouped axis ``n`` cut in two, ``(groups, block)``, the end padded with ``fill``."""
    pads, shape = [], []
    for n, block in zip(x.shape, blocks, strict=True):
        if is_split(n, block):
            groups = math.ceil(n / block)
            pads.append((0, groups * block - n))
            shape += [groups, block]
        else:
            pads.append((0, 0))
            shape.append(n)
    if any(after for _, after in pads):
        x = jnp.pad(x, pads, constant_values=fill)
    return x.reshape(shape) if len(shape) != x.ndim else x


def join(x: Shaped[Array, "..."], shape: Sequence[Dim], blocks: Sequence[Dim]) -> Shaped[Array, "..."]:
    """Returns the inverse of `split`: an array of ``shape``, without the padding."""
    if not any(is_split(n, block) for n, block in zip(shape, blocks, strict=True)):
        return x
    padded = [math.ceil(n / b) * b if is_split(n, b) else n for n, b in zip(shape, blocks, strict=True)]
    x = x.reshape(padded)
    return x if tuple(padded) == tuple(shape) else x[tuple(slice(n) for n in shape)]


def spread(scale: Shaped[Array, "..."], shape: Sequence[Dim], blocks: Sequence[Dim]) -> Shaped[Array, "..."]:
    """Returns ``scale`` shaped so that it broadcasts against ``split(x, blocks)``."""
    out = []
    for n, block, s in zip(shape, blocks, scale.shape, strict=True):
        out += [s, 1] if is_split(n, block) else [s]
    return scale.reshape(out)


def reduce_blocks(
    x: Shaped[Array, "..."], blocks: Sequence[Dim], reduction: Callable[..., Array]
) -> Shaped[Array, "..."]:
    """Returns ``reduction`` over every block: an array of `scale_shape`.

    Args:
        x: any shape; short groups are padded with zeros, so the reduction must not mind a zero (absmax, or a
            minimum and maximum whose range includes zero). Axes of length 0 count as one zero: no value has no range.
        blocks: elements per scale, per axis.
        reduction: such as `jnp.max`; called with ``axis=`` and ``keepdims=True``.
    """
    if any(isinstance(n, int) and n == 0 for n in x.shape):
        x = jnp.zeros([1 if isinstance(n, int) and n == 0 else n for n in x.shape], x.dtype)
    cut = split(x, blocks)
    axes, position = [], 0
    for n, block in zip(x.shape, blocks, strict=True):
        if is_split(n, block):
            axes.append(position + 1)
            position += 2
        else:
            if block == n or (block != 1 and block >= n):  # a symbolic dimension: its own block, or one per row
                axes.append(position)
            position += 1
    reduced = reduction(cut, axis=tuple(axes), keepdims=True)  # also along none: of one element too |x| is a magnitude
    return reduced.reshape(scale_shape(x.shape, blocks))


def rows(x: Shaped[Array, "..."], blocks: Sequence[Dim], fill: float = float("nan")) -> Shaped[Array, "block elements"]:
    """Returns one row per block, in the order of the flattened scale; short groups end in ``fill``.

    Example:
        >>> rows(jnp.arange(6.0).reshape(2, 3), (1, 2), fill=-1.0).tolist()
        [[0.0, 1.0], [2.0, -1.0], [3.0, 4.0], [5.0, -1.0]]
    """
    cut = split(x, blocks, fill)
    outer, inner, position = [], [], 0
    for n, block in zip(x.shape, blocks, strict=True):
        if is_split(n, block):
            outer.append(position)
            inner.append(position + 1)
            position += 2
        else:
            (inner if block >= n else outer).append(position)
            position += 1
    count = math.prod(scale_shape(x.shape, blocks))
    return cut.transpose(*outer, *inner).reshape(count, -1)
