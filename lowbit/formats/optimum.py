"""The least possible error of a grid on a known density: numbers to judge range rules and formats by.

Float64 on the host, by exact partial moments of the density: nothing is sampled.
"""

import math

import jax.numpy as jnp
import numpy as np

from lowbit.core.spec import Format
from lowbit.formats.density import NORMAL, Density


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

    A scan over scales finds the valley, golden section the bottom, to 1e-10. The scan puts the format's largest level
    between 0.05 and 400 standard deviations.

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
    scales = np.geomspace(0.05, 400.0, 270) * math.sqrt(density.power) / reach
    at = int(np.argmin([error(s) for s in scales]))
    low, high = scales[max(at - 1, 0)], scales[min(at + 1, len(scales) - 1)]
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    while high - low > 1e-10 * high:
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, second) if error(first) < error(second) else (first, high)
    best = float(low + high) / 2.0
    return best, error(best)


def best_levels(count: int, density: Density = NORMAL, *, iterations: int = 500) -> tuple[np.ndarray, float]:
    """Returns the ``count`` levels with the least mean squared error (Lloyd-Max), and that error.

    Newton steps on the conditions ``level = mean of its cell``, with Lloyd's step wherever Newton's would not lower the
    error. A local optimum; the only one where the logarithm of the density is concave (normal, Laplace, uniform).

    Reference: Max, Quantizing for minimum distortion, IRE Transactions on Information Theory, 1960, Table I.

    Args:
        count: levels, 2 to 256.
        density: on the real line.
        iterations: at most this many; 256 levels of the normal density need 10.

    Raises:
        ValueError: for fewer than 2 or more than 256 levels.

    Example:
        >>> levels, error = best_levels(4)
        >>> levels.round(5).tolist(), round(error, 6)
        ([-1.51042, -0.45278, 0.45278, 1.51042], 0.117482)
    """
    if not 2 <= count <= 256:
        raise ValueError(f"count must be 2 to 256 levels, got {count}")
    deviation = math.sqrt(density.power)
    grid = np.linspace(-12.0, 12.0, 48001) * deviation
    share = np.cumsum(np.cbrt(np.maximum(np.diff(density.moment(0, grid)), 0.0)))
    levels = np.interp((np.arange(count) + 0.5) / count * share[-1], share, grid[1:])
    error = mean_squared_error(levels, density)
    for _ in range(iterations):
        lloyd, newton = _steps(levels, density, 1e-6 * deviation)
        moved = lloyd
        if newton is not None and (np.diff(newton) > 0).all():
            moved = newton if mean_squared_error(newton, density) <= error * (1 + 1e-9) else lloyd
        done = np.abs(moved - levels).max() < 1e-9 * deviation  # the error is then within 1e-17 of its least
        levels, error = moved, mean_squared_error(moved, density)
        if done:
            break
    return levels, error


def _steps(levels: np.ndarray, density: Density, width: float) -> tuple[np.ndarray, np.ndarray | None]:
    """The levels after Lloyd's and after Newton's step; None where a cell is empty or the system singular."""
    middle = (levels[1:] + levels[:-1]) / 2
    ends = np.concatenate([[-np.inf], middle, [np.inf]])
    mass, mean = (np.diff(density.moment(order, ends)) for order in (0, 1))
    full = mass > 0
    lloyd = np.where(full, mean / np.where(full, mass, 1.0), levels)
    if not full.all():
        return lloyd, None
    at = np.diff(density.moment(0, np.stack([middle - width, middle + width])), axis=0)[0] / (2 * width)
    upper, lower = (levels[:-1] - middle) * at / 2, (middle - levels[1:]) * at / 2
    jacobian = np.diag(mass + np.append(upper, 0.0) + np.append(0.0, lower)) + np.diag(upper, 1) + np.diag(lower, -1)
    try:
        return lloyd, levels - np.linalg.solve(jacobian, levels * mass - mean)
    except np.linalg.LinAlgError:
        return lloyd, None
