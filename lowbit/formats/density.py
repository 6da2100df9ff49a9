"""Densities by their partial moments: what the least errors of `lowbit.formats.optimum` are computed on.

Float64 on the host. Nothing is sampled: closed forms, or Gauss-Legendre integration of any density given as a function.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

_Moment = Callable[[int, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Density:
    """A density by its partial moments.

    Attributes:
        name: of the density.
        moment: ``(order, x) -> integral of t**order from -infinity to x``, for orders 0, 1 and 2; arrays in and out.
    """

    name: str
    moment: _Moment

    @property
    def power(self) -> float:
        """The mean of ``t**2``: the signal that errors are compared with."""
        return float(self.moment(2, np.asarray([np.inf]))[0])


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


def uniform(low: float = -math.sqrt(3.0), high: float = math.sqrt(3.0)) -> Density:
    """Returns the uniform density on ``[low, high]``; by default that of unit variance.

    Raises:
        ValueError: unless ``low < high``.

    Example:
        >>> round(uniform(0.0, 1.0).power, 6)
        0.333333
    """
    if not low < high:
        raise ValueError(f"a uniform density needs low < high, got {low} and {high}")

    def moment(order: int, x: np.ndarray) -> np.ndarray:
        x = np.clip(x, low, high)
        return (x ** (order + 1) - low ** (order + 1)) / ((order + 1) * (high - low))

    return Density(f"uniform({low:g}, {high:g})", moment)


def student_t(degrees: float) -> Density:
    """Returns Student's t density, as tabulated (variance ``degrees / (degrees - 2)``).

    Raises:
        ValueError: unless ``degrees > 2``: below, no error is finite.

    Example:
        >>> round(student_t(5.0).power, 6)
        1.666667
    """
    if not degrees > 2.0:
        raise ValueError(f"degrees must be above 2, where the variance is finite, got {degrees}")
    front = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    return density_of(lambda t: front * (1.0 + t * t / degrees) ** (-(degrees + 1) / 2), name=f"student_t({degrees:g})")


def rectified(density: Density) -> Density:
    """Returns the density of ``max(t, 0)``: what follows a relu. The values at zero cost nothing and count nothing.

    Example:
        >>> round(rectified(NORMAL).power, 6)
        0.5
    """
    start = [float(density.moment(order, np.zeros(1))[0]) for order in range(3)]

    def moment(order: int, x: np.ndarray) -> np.ndarray:
        beyond = density.moment(order, np.maximum(x, 0.0)) - start[order]
        return np.where(x >= 0, beyond + (start[0] if order == 0 else 0.0), 0.0)

    return Density(f"rectified {density.name}", moment)


def density_of(
    function: Callable[[np.ndarray], np.ndarray],
    low: float = -math.inf,
    high: float = math.inf,
    *,
    name: str = "density",
    scale: float = 1.0,
) -> Density:
    """Returns any density by integrating ``function`` (up to a factor), to about 1e-12 where it is smooth.

    The axis is cut into cells that grow with the distance from zero, finest at ``scale``, and reach 1e12 scales, so
    that power-law tails count too; each cell gets 20 Gauss-Legendre points.

    Args:
        function: non-negative, of float64 arrays; its integral need not be one.
        low: where it starts; a jump belongs here or at ``high``.
        high: where it ends.
        name: of the density.
        scale: the width of its middle.

    Raises:
        ValueError: for bounds out of order, or a function that is negative, not finite, or without mass.

    Example:
        >>> logistic = density_of(lambda t: 0.25 / np.cosh(np.clip(t / 2, -350, 350)) ** 2, name="logistic")
        >>> round(logistic.power, 9), round(np.pi**2 / 3, 9)
        (3.289868134, 3.289868134)
    """
    if not low < high or not scale > 0:
        raise ValueError(f"a density needs low < high and scale > 0, got {low}, {high} and {scale}")
    reach = 28.3  # asinh(1e12)
    edges = np.sinh(np.linspace(-reach, reach, 1133)) * scale
    edges = np.concatenate([[max(low, edges[0])], edges[(edges > low) & (edges < high)], [min(high, edges[-1])]])
    edges = np.unique(edges)
    points, weights = np.polynomial.legendre.leggauss(20)

    def integral(order: int, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        half = (0.5 * (end - start))[:, None]
        t = (0.5 * (end + start))[:, None] + half * points
        return np.sum(weights * half * function(t) * t**order, axis=1)

    cells = [integral(order, edges[:-1], edges[1:]) for order in range(3)]
    mass = float(cells[0].sum())
    if not np.isfinite(cells).all() or not mass > 0 or (cells[0] < 0).any():
        raise ValueError(f"{name} must be non-negative and finite with a positive integral, got the integral {mass}")
    below = [np.concatenate([[0.0], np.cumsum(part)]) for part in cells]

    def moment(order: int, x: np.ndarray) -> np.ndarray:
        x = np.clip(np.asarray(x, np.float64), edges[0], edges[-1])
        at = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
        flat = integral(order, edges[at].reshape(-1), x.reshape(-1)).reshape(x.shape)
        return (below[order][at] + flat) / mass

    return Density(name, moment)
