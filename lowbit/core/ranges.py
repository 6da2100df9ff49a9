"""Range rules: from statistics to a scale and a zero point.

Rules compose with any format and granularity. Two decisions hold for all of them: an all-zero block gets the scale of
`lowbit.core.scales.scale_of_zeros` (1, where the format has a zero), and a range is widened to include zero, so that zero is
exact.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import blocks as block_ops
from .extremes import at_least, at_most, larger, largest, largest_magnitude, nan_where, smallest
from .powers import check_scale_rule
from .qtensor import quantize_with
from .rounding import widened
from .scales.bounds import bounded, scale_of_zeros
from .spec import Operand, Spec, Tensor
from .statistics import MinMax, MovingMinMax, Sample, Statistic
from .tails import Ends, drawn

_LARGEST = float(np.finfo(np.float32).max)

ScaleZero = tuple[Any, Float[Array, "..."] | None]
"""A scale, as a float array or stored already (a `QTensor`, see `lowbit.core.searching`), and a zero point or None."""


@dataclasses.dataclass(frozen=True)
class RangeRule(abc.ABC):
    """How a scale (and zero point) follows from what was observed."""

    def check(self, spec: Spec) -> None:
        """Raises ValueError where the rule cannot serve ``spec``; called when a quantizer is built."""
        return

    @abc.abstractmethod
    def needs(self, operand: Operand, spec: Spec) -> tuple[Statistic, ...]:
        """Returns the statistics to fold for an operand that is not a weight."""

    @abc.abstractmethod
    def of_values(self, x: Float[Array, "..."], operand: Operand, spec: Spec) -> ScaleZero:
        """Returns scale and zero point from the values themselves: weights, and dynamic inputs."""

    @abc.abstractmethod
    def of_stats(self, stats: Mapping[str, Any], operand: Operand, spec: Spec) -> ScaleZero:
        """Returns scale and zero point from finished statistics."""


def dynamic_range(rule: RangeRule, x: Float[Array, "..."], operand: Operand, spec: Spec) -> ScaleZero:
    """Returns the scale and zero point of values that are quantized as they come: ``rule.of_values``, without gradient.

    A block (a row, as a rule) that holds NaN or infinity has the scale NaN: no scale is right for it, and so all of it is
    NaN. Stored scales meet infinity otherwise: it takes the end level.
    """
    x = widened(jax.lax.stop_gradient(x))
    scale, zero = rule.of_values(x, operand, spec)
    reach = block_ops.reduce_blocks(x, spec.granularity.blocks(operand), largest_magnitude)
    return nan_where(~jnp.isfinite(reach), scale), zero


def check_range(rule: object, spec: Spec) -> None:
    """Raises TypeError unless ``rule`` is a `RangeRule`, ValueError where it cannot serve ``spec``."""
    if not isinstance(rule, RangeRule):
        raise TypeError(f"range must be a RangeRule such as Full() or MSE(), got {rule!r}")
    rule.check(spec)


def scale_zero(
    low: Float[Array, "..."], high: Float[Array, "..."], spec: Spec, *, scale_rule: str = "floor"
) -> ScaleZero:
    """Returns the scale and zero point whose grid just covers ``[low, high]`` (float32, the scale's shape).

    Symmetric: ``scale = max(|low|, |high|) / largest level``; where scales have signs, the end that is larger in magnitude,
    with its sign, over the level furthest from zero (``int4``: -8). Affine: ``scale = (high - low) / (levels - 1)`` and
    ``zero = round(smallest level - low / scale)``, kept within the levels (Krishnamoorthi, 2018, section 2.1).
    Power-of-two scales (``e8m0``) follow ``scale_rule``, one of `lowbit.core.powers.SCALE_RULES`, in exponent
    arithmetic. Infinite bounds count as the largest finite value; NaN makes the scale NaN, and with it every value of the
    block. Scales lie between `smallest_scale` and `largest_scale`: magnitudes above the largest level times 2**126 saturate,
    which float32 reaches where the largest level is below 4.
    """
    low, high = at_least(at_most(low, 0.0), -_LARGEST), at_most(at_least(high, 0.0), _LARGEST)
    top, bottom = spec.format.high, spec.format.low
    if spec.symmetric and spec.has_signed_scales:
        entry = jnp.where(larger(-low, high) == high, high, low)
        return _nonzero(entry * np.float32(1.0 / spec.format.far_end), entry, spec), None
    if spec.symmetric:
        reach = larger(-low, high) if bottom < 0 else high
        return _nonzero(spec.scale.of_reach(reach, spec.format, scale_rule), reach, spec), None
    share = np.float32(1.0 / (top - bottom))
    width = jnp.where(jnp.isinf(high - low), high * share - low * share, (high - low) * share)  # no overflow
    scale = _nonzero(width, width, spec)
    zero = at_most(at_least(jnp.round(bottom - low * (1.0 / scale)), bottom), top)
    return scale, jax.lax.stop_gradient(zero)


def _nonzero(scale: Float[Array, "..."], reach: Float[Array, "..."], spec: Spec) -> Float[Array, "..."]:
    """Returns ``scale`` within its bounds, that of a block of zeros where it or ``reach`` is 0."""
    return jnp.where((reach == 0) | (scale == 0), scale_of_zeros(spec), bounded(scale, spec)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Full(RangeRule):
    """The whole range: absmax where the grid is symmetric, minimum and maximum where it is affine.

    Over batches, the extremes of all of them.
    """

    def needs(self, operand: Operand, spec: Spec) -> tuple[Statistic, ...]:
        return (MinMax(spec.granularity, operand.contract),)

    def of_values(self, x: Float[Array, "..."], operand: Operand, spec: Spec) -> ScaleZero:
        blocks = spec.granularity.blocks(operand)
        x = x.astype(jnp.float32)
        if spec.symmetric and spec.format.low < 0 and not spec.has_signed_scales:
            reach = block_ops.reduce_blocks(x, blocks, largest_magnitude)
            return scale_zero(-reach, reach, spec)
        low, high = (block_ops.reduce_blocks(x, blocks, f) for f in (smallest, largest))
        return scale_zero(low, high, spec)

    def of_stats(self, stats: Mapping[str, Any], operand: Operand, spec: Spec) -> ScaleZero:
        low, high = stats["minmax"]
        return scale_zero(low, high, spec)


@dataclasses.dataclass(frozen=True)
class PowerOfTwo(Full):
    """The whole range with power-of-two scales found by a named rule; for specs with ``e8m0`` scales (MX formats).

    Attributes:
        rule: ``"floor"`` (OCP MX 1.0, saturates; what `Full` does too), ``"ceil"`` (never saturates) or ``"even"``.
    """

    rule: str = "floor"

    def __post_init__(self):
        check_scale_rule(self.rule)

    def of_values(self, x: Float[Array, "..."], operand: Operand, spec: Spec) -> ScaleZero:
        reach = block_ops.reduce_blocks(x.astype(jnp.float32), spec.granularity.blocks(operand), largest_magnitude)
        return self._of_reach(-reach, reach, spec)

    def of_stats(self, stats: Mapping[str, Any], operand: Operand, spec: Spec) -> ScaleZero:
        low, high = stats["minmax"]
        return self._of_reach(low, high, spec)

    def check(self, spec: Spec) -> None:
        if spec.scale.name != "e8m0" or not spec.symmetric:
            raise ValueError(f"PowerOfTwo needs symmetric e8m0 scales, got {spec.text}; add /e8m0 or use an mx format")

    def _of_reach(self, low: Float[Array, "..."], high: Float[Array, "..."], spec: Spec) -> ScaleZero:
        self.check(spec)
        return scale_zero(low, high, spec, scale_rule=self.rule)


@dataclasses.dataclass(frozen=True)
class ToLowest(Full):
    """The whole range scaled to the *lowest* level: ``absmax / 8`` for 4 bits, so that ``+absmax`` is clipped to 7 / 8.

    A finer step than absmax / 7 for a clipped top: better on blocks of 64 and more.
    """

    def check(self, spec: Spec) -> None:
        if (
            not spec.symmetric
            or -spec.format.low <= spec.format.high
            or spec.has_signed_scales
            or spec.scale.name == "e8m0"
        ):
            raise ValueError(
                f"ToLowest is for symmetric formats whose lowest level is the largest, with positive scales; got {spec.text}"
            )

    def of_values(self, x: Float[Array, "..."], operand: Operand, spec: Spec) -> ScaleZero:
        shrink = np.float32(spec.format.reach / -spec.format.low)
        return super().of_values(x.astype(jnp.float32) * shrink, operand, spec)

    def of_stats(self, stats: Mapping[str, Any], operand: Operand, spec: Spec) -> ScaleZero:
        shrink = np.float32(spec.format.reach / -spec.format.low)
        low, high = stats["minmax"]
        return scale_zero(low * shrink, high * shrink, spec)


@dataclasses.dataclass(frozen=True)
class MovingAverage(Full):
    """Moving average of the per-batch minimum and maximum. For weights, the same as `Full`."""

    decay: float = 0.9

    def __post_init__(self):
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")

    def needs(self, operand: Operand, spec: Spec) -> tuple[Statistic, ...]:
        return (MovingMinMax(spec.granularity, operand.contract, self.decay),)

    def of_stats(self, stats: Mapping[str, Any], operand: Operand, spec: Spec) -> ScaleZero:
        low, high = stats["moving_minmax"]
        return scale_zero(low, high, spec)


@dataclasses.dataclass(frozen=True)
class MSE(RangeRule):
    """The clipped range with the least mean squared error, searched over shrunken full ranges, then refined.

    Attributes:
        steps: candidates tried, evenly spaced between ``smallest`` and 1 times the full range.
        smallest: the smallest fraction of the full range tried.
        refine: rounds of eight more candidates around the best, four times closer each round.
        ends: of an input, how many of the largest and of the smallest values count beside its sample, which misses what is rarer
            than its values; 0: none, for a start that training moves.
    """

    steps: int = 80
    smallest: float = 0.02
    refine: int = 2
    ends: int = 512

    def __post_init__(self):
        if self.steps < 2 or not 0.0 < self.smallest < 1.0 or self.refine < 0 or self.ends < 0:
            raise ValueError(
                "MSE needs steps >= 2, 0 < smallest < 1, refine >= 0 and ends >= 0, "
                f"got {self.steps}, {self.smallest}, {self.refine} and {self.ends}"
            )

    def needs(self, operand: Operand, spec: Spec) -> tuple[Statistic, ...]:
        if not isinstance(spec.granularity, Tensor):
            raise ValueError(
                f"the MSE rule sees a sample of an input, so its scale is per tensor; got /{spec.granularity.text}"
            )
        return (MinMax(spec.granularity, operand.contract), Sample(), *([Ends(self.ends)] if self.ends else []))

    def of_values(self, x: Float[Array, "..."], operand: Operand, spec: Spec) -> ScaleZero:
        blocks = spec.granularity.blocks(operand)
        x = x.astype(jnp.float32)
        low, high = (block_ops.reduce_blocks(x, blocks, f) for f in (smallest, largest))
        return self.search(x, low, high, blocks, spec)

    def of_stats(self, stats: Mapping[str, Any], operand: Operand, spec: Spec) -> ScaleZero:
        low, high = stats["minmax"]
        values, weights = drawn(stats)
        shape = low.shape
        best = self.search(values, low.reshape(1), high.reshape(1), (values.size,), spec, weights=weights)
        return tuple(part if part is None else part.reshape(shape) for part in best)  # pyright: ignore[reportReturnType]

    def search(
        self,
        x: Float[Array, "..."],
        low: Float[Array, "..."],
        high: Float[Array, "..."],
        blocks: tuple[int, ...],
        spec: Spec,
        *,
        weights: Float[Array, "..."] | None = None,
    ) -> ScaleZero:
        """Returns the best scale and zero point per block of ``x`` among shrunken ``[low, high]``.

        Args:
            x: values.
            low: their smallest per block.
            high: their largest per block.
            blocks: of ``x`` that share a scale.
            spec: the grid.
            weights: how often each value counts, as ``x``; None: once.
        """

        def error_at(fraction):
            scale, zero = scale_zero(low * fraction, high * fraction, spec)
            value = quantize_with(x, spec, scale, zero, blocks).dequantize()
            error = jnp.square(value - x)
            return block_ops.reduce_blocks(error if weights is None else error * weights, blocks, jnp.sum)

        def try_next(best, fraction):
            least, chosen = best
            error = error_at(fraction)
            better = error < least
            return (jnp.where(better, error, least), jnp.where(better, fraction, chosen)), None

        def refine(best, spacing):
            (_, centre) = best
            return jax.lax.scan(lambda b, o: try_next(b, centre + o * spacing), best, offsets)[0], None

        fractions = jnp.linspace(1.0, self.smallest, self.steps)
        offsets = jnp.asarray([-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0], jnp.float32)
        best = (jnp.full(low.shape, jnp.inf), jnp.ones(low.shape))
        best, _ = jax.lax.scan(try_next, best, fractions)
        first = (1.0 - self.smallest) / (self.steps - 1)
        spacings = jnp.asarray([first * 0.25**i for i in range(self.refine)], jnp.float32)
        (_, chosen), _ = jax.lax.scan(refine, best, spacings)
        return scale_zero(low * chosen, high * chosen, spec)
