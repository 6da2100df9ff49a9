"""The least possible error of a grid on a known density: numbers to judge range rules and formats by.

Float64 on the host, by exact partial moments of the density: nothing is sampled.
"""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from lowbit.core.spec import Format


@dataclasses.dataclass(frozen=True)
class Density:
    """A density with unit variance, by its partial moments.

    Attributes:
        name: of the density.
        moment: ``(order, x) -> integral of t**order from -infinity to x``, for orders 0, 1 and 2; arrays in and out.
    """

    name: str
    moment: Callable[[int, np.ndarray], np.ndarray]


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _normal_moment(order: int, x: np.ndarray) -> np.ndarray:
    x = np.clip(x, -40.0, 40.0)
    density = np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    below = 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))
    return (below, -density, below - x * density)[order]


def _laplace_moment(order: int, x: np.ndarray) -> np.ndarray:
    rate = math.sqrt(2.0)
    x = np.clip(x, -400.0, 400.0)
    tail = 0.5 * np.exp(-rate * np.abs(x))
    positive = x > 0
    if order == 0:
        return np.where(positive, 1.0 - tail, tail)
    if order == 1:
        return -tail * (np.abs(x) + 1.0 / rate)
    beyond = tail * (x * x + 2.0 * np.abs(x) / rate + 1.0)  # 2 / rate**2 == 1
    return np.where(positive, 1.0 - beyond, beyond)


NORMAL = Density("normal", _normal_moment)
"""The normal density N(0, 1)."""

LAPLACE = Density("laplace", _laplace_moment)
"""The Laplace density of unit variance."""


def levels_of(format: Format) -> np.ndarray:
    """Returns every level of a format, increasing, in float64; at most 16 bits.

    Example:
        >>> from lowbit.formats.lookup import format_named
        >>> levels_of(format_named("fp4_e2m1"))[8:].tolist()
        [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """
    count = 2**format.bits
    codes = np.arange(count) - (count // 2 if format.is_signed else 0)
    dtype = np.uint8 if not format.is_signed else np.int8
    if format.bits > 8:
        dtype = np.int16 if format.is_signed else np.uint16
    values = np.asarray(format.decode(jnp.asarray(codes.astype(dtype))), np.float64)
    return np.unique(values[np.isfinite(values) & (values >= format.low) & (values <= format.high)])


def mean_squared_error(levels: np.ndarray, density: Density = NORMAL) -> float:
    """Returns the expected squared error of rounding to the nearest of ``levels``.

    Example:
        >>> round(mean_squared_error(np.array([-0.79788456, 0.79788456])), 6)
        0.36338
    """
    levels = np.asarray(levels, np.float64)
    ends = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
    mass, mean, power = (np.diff(density.moment(order, ends)) for order in range(3))
    return float(np.sum(power - 2.0 * levels * mean + levels * levels * mass))


def best_scale(format: Format, density: Density = NORMAL) -> tuple[float, float]:
    """Returns the scale with the least mean squared error, and that error.

    A scan over scales finds the valley, golden section the bottom, to 1e-10.

    Example:
        >>> from lowbit.formats.integer import Integer
        >>> scale, error = best_scale(Integer(4, narrow=True))
        >>> round(scale, 5), round(error, 7)
        (0.35341, 0.0128894)
    """
    levels = levels_of(format)

    def error(scale: float) -> float:
        return mean_squared_error(levels * scale, density)

    reach = float(np.abs(levels).max())
    scales = np.geomspace(0.2, 40.0, 160) / reach
    at = int(np.argmin([error(s) for s in scales]))
    low, high = scales[max(at - 1, 0)], scales[min(at + 1, 159)]
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    while high - low > 1e-10 * high:
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, second) if error(first) < error(second) else (first, high)
    best = float(low + high) / 2.0
    return best, error(best)


def best_levels(count: int, density: Density = NORMAL, *, iterations: int = 20000) -> tuple[np.ndarray, float]:
    """Returns the ``count`` levels with the least mean squared error (Lloyd-Max), and that error.

    Reference: Max, Quantizing for minimum distortion, IRE Transactions on Information Theory, 1960, Table I.

    Raises:
        ValueError: for fewer than 2 or more than 256 levels.

    Example:
        >>> levels, error = best_levels(4)
        >>> levels.round(5).tolist(), round(error, 6)
        ([-1.51042, -0.45278, 0.45278, 1.51042], 0.117482)
    """
    if not 2 <= count <= 256:
        raise ValueError(f"count must be 2 to 256 levels, got {count}")
    grid = np.linspace(-12.0, 12.0, 48001)
    share = np.cumsum(np.cbrt(np.maximum(np.diff(density.moment(0, grid)), 0.0)))
    levels = np.interp((np.arange(count) + 0.5) / count * share[-1], share, grid[1:])
    for _ in range(iterations):
        ends = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        moved = np.diff(density.moment(1, ends)) / np.diff(density.moment(0, ends))
        done = np.abs(moved - levels).max() < 1e-12
        levels = moved
        if done:
            break
    return levels, mean_squared_error(levels, density)
