"""Few shapes for many weights: what is compiled for one serves all that round up to it.

Filling up changes no result beyond the order of sums: a row of zeros whose input was zero is dead (`lowbit.solvers.factor`),
a column of zeros is rounded to zeros and looks at no other, and a matrix of zeros is rounded alone.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

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
