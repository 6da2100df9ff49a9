"""Exact sums of integers that are carried in float32: the contraction is cut so that no partial sum can pass 2**24.

Any contracted axis may be cut, and several of them where one is not long enough: a patch embedding of 32 x 32 x 3 sums 3072
products over axes of 32, 32 and 3. A kernel is cut along its window by moving the input under it.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from .matmul import Matmul

EXACT = 2.0**24
"""Integers up to here are exact in float32, in any order of summation."""


def exact_sum(matmul: Matmul, left: Array, right: Array, reach: float) -> Array:
    """Returns the int32 accumulator of integers carried in float32; the contraction is cut so that every sum is exact.

    Args:
        matmul: the operation, a `lowbit.interpret.arithmetic.Matmul`. Its whole sum fits int32: `lowbit.bind` checks that.
        left: integers in float32.
        right: integers in float32.
        reach: the largest magnitude of one product, at most 2**24.
    """
    total = None
    for a, b, changes in _cut(matmul, left, right, int(EXACT // reach), {}):
        part = matmul.accumulate_in(a, b, jnp.float32, **changes).astype(jnp.int32)
        total = part if total is None else total + part
    assert total is not None
    return total


def contracted_size(matmul: Matmul, left: Any, right: Any) -> int:
    """Returns how many products are summed into one result."""
    return math.prod(right.shape[axis] for axis in _contracted(matmul)[1])


def _contracted(matmul: Matmul) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The contracted axes of either operand, in pairs; a window's are axes of the image that it slides along."""
    numbers = dict(matmul.params)["dimension_numbers"]
    if matmul.name == "dot_general":
        return numbers[0]
    return tuple(numbers.lhs_spec[1:]), tuple(numbers.rhs_spec[1:])


def _cut(
    matmul: Matmul, left: Array, right: Array, most: int, changes: dict[str, Any]
) -> Iterator[tuple[Array, Array, dict[str, Any]]]:
    """Yields operands, and changed parameters, of operations whose sum is the whole and that sum at most ``most`` products."""
    count = contracted_size(matmul, left, right)
    if count <= most:
        yield left, right, changes
        return
    pairs = list(zip(*_contracted(matmul), strict=True))
    at = max(range(len(pairs)), key=lambda i: right.shape[pairs[i][1]])
    length = right.shape[pairs[at][1]]
    parts = math.ceil(length / max(most * length // count, 1))
    step = math.ceil(length / parts)
    for start in range(0, length, step):
        stop = min(start + step, length)
        kernel = lax.slice_in_dim(right, start, stop, axis=pairs[at][1])
        if matmul.name == "dot_general":
            part, changed = lax.slice_in_dim(left, start, stop, axis=pairs[at][0]), changes
        elif at == 0:
            groups = dict(matmul.params)["feature_group_count"]
            part, changed = _features(left, pairs[0][0], groups, start, stop), changes
        else:
            part, changed = _under_window(matmul, left, at - 1, length, start, stop, changes)
        yield from _cut(matmul, part, kernel, most, changed)


def _features(image: Array, axis: int, groups: int, start: int, stop: int) -> Array:
    """Input features ``start`` to ``stop`` of every feature group."""
    if groups == 1:
        return lax.slice_in_dim(image, start, stop, axis=axis)
    shape = image.shape
    grouped = image.reshape(*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])
    part = lax.slice_in_dim(grouped, start, stop, axis=axis + 1)
    return part.reshape(*shape[:axis], -1, *shape[axis + 1 :])


def _under_window(
    matmul: Matmul, image: Array, spatial: int, length: int, start: int, stop: int, changes: dict[str, Any]
) -> tuple[Array, dict[str, Any]]:
    """The image, and its padding, under taps ``start`` to ``stop`` of a window of ``length``.

    The first ``start`` taps lie that much further left, so the image gets that much less padding there. Where none is left
    to take, the image itself is cut: XLA's CPU backend has no fast convolution with negative padding.
    """
    params = {**dict(matmul.params), **changes}
    axis = params["dimension_numbers"].lhs_spec[2 + spatial]
    step, inside = params["rhs_dilation"][spatial], params["lhs_dilation"][spatial]
    low, high = params["padding"][spatial]
    low, high = low - start * step, high - (length - stop) * step
    if low < 0 or high < 0:
        image = lax.pad(
            image,
            jnp.zeros((), image.dtype),
            [(low, high, inside - 1) if i == axis else (0, 0, 0) for i in range(image.ndim)],
        )
        low = high = 0
        inside = 1
    replaced = lambda values, value: tuple(value if i == spatial else v for i, v in enumerate(values))  # noqa: E731
    padding, dilation = replaced(params["padding"], (low, high)), replaced(params["lhs_dilation"], inside)
    return image, {**changes, "padding": padding, "lhs_dilation": dilation}
