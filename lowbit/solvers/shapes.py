"""Few shapes for many weights: what is compiled for one serves all that round up to it.

Filling up changes no result beyond the order of sums: a row of zeros whose input was zero is dead (`lowbit.solvers.factor`),
a column of zeros is rounded to zeros and looks at no other, and a matrix of zeros is rounded alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

_ROWS = (32, 128, 384, 768, 1024, 1280, 1536)
_COLUMNS = (64, 256, 1024)
_FEW_COLUMNS = (4, *_COLUMNS)
_MATRICES = (1, 64, 256, 1024)
"""Far apart: up to width 1024 a program costs more to compile (3 s) than what it fills up costs to compute."""


def padded(size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns the shape that ``[matrices, K, N]`` is filled up to.

    Example:
        >>> padded((1, 144, 24)), padded((144, 9, 1)), padded((1, 1600, 3000))
        ((1, 384, 64), (256, 32, 4), (1, 2048, 3072))
    """
    matrices, inner, columns = size
    across = _COLUMNS if matrices == 1 else _FEW_COLUMNS
    return _next(matrices, _MATRICES, 1024), _next(inner, _ROWS, 512), _next(columns, across, 1024)


def _next(n: int, sizes: Sequence[int], step: int) -> int:
    return next((size for size in sizes if size >= n), -(-n // step) * step)


def filled(x: Shaped[np.ndarray, "..."], shape: Sequence[int], value: float = 0.0) -> Shaped[np.ndarray, "..."]:
    """Returns an array with ``value`` behind its end along every axis, up to ``shape``."""
    return np.pad(x, [(0, n - m) for n, m in zip(shape, x.shape, strict=True)], constant_values=value)


def over_matrices(function: Callable[..., Any], *args: Any) -> Any:
    """Returns what a function makes of every matrix, as `jax.vmap` does.

    Of a single matrix it is computed without the axis that counts them: with it, a product of 1024 x 1024 and the sum of its columns take XLA
    23 ms on two cores of a Xeon, without it 9.

    Args:
        function: of one matrix.
        *args: trees of arrays with an axis of matrices in front.
    """
    if len(jax.tree.leaves(args)[0]) != 1:
        return jax.vmap(function)(*args)
    return jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda x: x[0], args)))


def group_sums(x: Float[Array, "in out"], group: Int[Array, " in"], count: int) -> Float[Array, "group out"]:
    """Returns the sum of the rows of every group; of one group without looking at which rows are in it."""
    return jnp.sum(x, axis=0, keepdims=True) if count == 1 else jax.ops.segment_sum(x, group, count)
