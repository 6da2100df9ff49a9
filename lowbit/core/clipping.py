"""Range rules that leave outliers outside: percentile, OCTAV, entropy.

All read magnitudes or values of one block at a time. For inputs they read a sample, so the scale is per tensor.
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
from .extremes import at_least, at_most, largest_magnitude, nan_where, smaller
from .powers import exponent, power_of_two
from .ranges import RangeRule, ScaleZero, scale_zero
from .spec import Operand, Spec, Tensor
from .statistics import Sample, Statistic
from .tails import Ends, drawn


@dataclasses.dataclass(frozen=True)
class Clipping(RangeRule):
    """A rule that finds ``[low, high]`` from rows of values, one row per scale."""

    @abc.abstractmethod
    def bounds(
        self,
        values: Float[Array, "block elements"],
        spec: Spec,
        *,
        weights: Float[Array, "block elements"] | None = None,
    ) -> tuple[Array, Array]:
        """Returns the lowest and highest value kept of every row, ``(block,)`` each, in float32.

        Args:
            values: one row per scale; NaN stands for "no value".
            spec: the static description.
            weights: how often each value counts; None: once.
        """

    def needs(self, operand: Operand, spec: Spec) -> tuple[Statistic, ...]:
        if not isinstance(spec.granularity, Tensor):
            name = type(self).__name__
            raise ValueError(
                f"{name} sees a sample of an input, so its scale is per tensor; got /{spec.granularity.text}"
            )
        return (Sample(), Ends())

    def of_values(self, x: Float[Array, "..."], operand: Operand, spec: Spec) -> ScaleZero:
        blocks = spec.granularity.blocks(operand)
        x = x.astype(jnp.float32)
        is_nan = jnp.isnan(block_ops.reduce_blocks(x, blocks, largest_magnitude))
        values = block_ops.rows(x, blocks)
        none = jnp.zeros(values.shape[:1], jnp.float32)  # of a block without values, as of one of zeros
        low, high = self.bounds(values, spec) if values.shape[1] else (none, none)
        return _scale_zero(low, high, is_nan, spec)

    def of_stats(self, stats: Mapping[str, Any], operand: Operand, spec: Spec) -> ScaleZero:
        sample, weights = drawn(stats)
        values, weights = sample.reshape(1, -1), None if weights is None else weights.reshape(1, -1)
        shape = block_ops.scale_shape(operand.shape, spec.granularity.blocks(operand))
        low, high = self.bounds(values, spec, weights=weights)
        return _scale_zero(low, high, jnp.isnan(largest_magnitude(values)).reshape(shape), spec)


def _scale_zero(low: Array, high: Array, is_nan: Array, spec: Spec) -> ScaleZero:
    """`scale_zero` of rows of bounds; NaN where the values had one: ``bounds`` cannot say, NaN is its "no value"."""
    low, high = (nan_where(is_nan, bound.reshape(is_nan.shape)) for bound in (low, high))
    return scale_zero(low, high, spec)


@dataclasses.dataclass(frozen=True)
class Percentile(Clipping):
    """The range that keeps ``percent`` of the values: of the magnitudes where symmetric, of each end where affine.

    Of an input it reads a sample, as long as sixteen of the sample's values or more are to be left outside; above that (99.9 percent) the
    largest and the smallest values of all are counted beside it, which a sample holds by chance.

    Attributes:
        percent: in (50, 100]; linear interpolation between neighbours. Affine grids drop half of the rest at each end.
    """

    percent: float = 99.9

    def __post_init__(self):
        if not 50.0 < self.percent <= 100.0:
            raise ValueError(f"percent must be in (50, 100], got {self.percent}")

    def needs(self, operand: Operand, spec: Spec) -> tuple[Statistic, ...]:
        sample, ends = super().needs(operand, spec)
        return (sample,) if (100.0 - self.percent) / 100.0 * Sample().size >= 16 else (sample, ends)

    def bounds(
        self,
        values: Float[Array, "block elements"],
        spec: Spec,
        *,
        weights: Float[Array, "block elements"] | None = None,
    ) -> tuple[Array, Array]:
        two_sided = spec.symmetric and spec.format.low < 0
        tail = (100.0 - self.percent) / (100.0 if spec.symmetric else 200.0)
        values = jnp.abs(values) if two_sided else values
        if weights is None:
            low, high = jnp.nanquantile(values, jnp.asarray([tail, 1.0 - tail], jnp.float32), axis=1)
        else:
            low, high = (sign * _above(sign * values, weights, tail) for sign in (-1.0, 1.0))
        return (-high, high) if two_sided else (low, high)


@dataclasses.dataclass(frozen=True)
class Octav(Clipping):
    """Optimally clipped range by Newton iteration; uniform integer formats.

    ``s <- sum |x| [|x| > s] / (n(s) sum [|x| <= s] + sum [|x| > s])``, where ``n(s) s**2`` is the rounding noise
    ``step**2 / 12`` at clip ``s`` with ``2**bits`` levels: ``4**-bits / 3`` on a two-sided grid.

    Reference: Sakr, Dai, Venkatesan, Zimmer, Dally, Khailany, Optimal Clipping and Magnitude-aware Differentiation for
    Improved Quantization-aware Training, ICML 2022, https://arxiv.org/abs/2206.06501, Algorithm 1.

    Differs from the paper: grids that are not two-sided use their own step width in ``n(s)``; zeros count as values.

    Attributes:
        iterations: Newton steps; 20 reach the float32 fixed point on normal and Laplace data.
    """

    iterations: int = 20

    def __post_init__(self):
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def check(self, spec: Spec) -> None:
        if not spec.format.is_integer:
            raise ValueError(f"Octav needs an integer format, got {spec.format.name}")

    def bounds(
        self,
        values: Float[Array, "block elements"],
        spec: Spec,
        *,
        weights: Float[Array, "block elements"] | None = None,
    ) -> tuple[Array, Array]:
        self.check(spec)
        two_sided = spec.symmetric and spec.format.low < 0
        x = jnp.abs(values) if two_sided else values
        x = at_least(x, 0.0) if spec.symmetric else x
        unit = power_of_two(jnp.minimum(exponent(jnp.nanmax(jnp.abs(x), axis=1, keepdims=True)), 126))
        x = x * (1.0 / unit)  # exact, and no sum of magnitudes overflows
        size, here = jnp.abs(x), ~jnp.isnan(x)
        often = here.astype(jnp.float32) * (1.0 if weights is None else weights)
        least, most = jnp.nanmin(x, axis=1), jnp.nanmax(x, axis=1)
        scaling = np.float32(4.0**-spec.format.bits / 12.0)

        def ends(s):
            return (-s, s) if two_sided else (at_most(at_least(least, -s), 0.0), smaller(most, s))

        def newton(s, _):
            low, high = ends(s)
            width = (high - low) * (1.0 / jnp.where(s > 0, s, 1.0))
            noise = scaling * width * width
            out = (size > s[:, None]) & here
            outside = _total(jnp.where(out, often, 0.0))
            over = noise * (_total(often) - outside) + outside
            return _total(jnp.where(out, size * often, 0.0)) * (1.0 / jnp.maximum(over, 1e-30)), None

        start = _total(jnp.where(here, size * often, 0.0)) * (1.0 / jnp.maximum(_total(often), 1.0))
        s, _ = jax.lax.scan(newton, start, length=self.iterations)
        low, high = ends(smaller(s, jnp.nanmax(size, axis=1)))
        return low * unit[:, 0], high * unit[:, 0]


@dataclasses.dataclass(frozen=True)
class Entropy(Clipping):
    """The clip whose quantized histogram is closest to the original's in Kullback-Leibler divergence.

    Values beyond a candidate clip are counted into its last bin; the candidate's bins are merged into the levels of the
    format and spread back evenly over those that were not empty. The candidate with the least divergence wins.

    Reference: Migacz, 8-bit Inference with TensorRT, GTC 2017, slides 29 to 39.

    Attributes:
        bins: of the histogram of magnitudes.
        candidates: clips tried, evenly spaced from as many bins as levels to all of them.
    """

    bins: int = 2048
    candidates: int = 128

    def __post_init__(self):
        if self.bins < 256 or self.candidates < 2:
            raise ValueError(f"Entropy needs bins >= 256 and candidates >= 2, got {self.bins} and {self.candidates}")

    def check(self, spec: Spec) -> None:
        if not spec.format.is_integer or spec.format.bits > 8:
            raise ValueError(f"Entropy needs an integer format of at most 8 bits, got {spec.format.name}")

    def bounds(
        self,
        values: Float[Array, "block elements"],
        spec: Spec,
        *,
        weights: Float[Array, "block elements"] | None = None,
    ) -> tuple[Array, Array]:
        self.check(spec)
        two_sided = spec.format.low < 0 or not spec.symmetric
        levels = max(2 ** (spec.format.bits - two_sided), 2)
        often = (~jnp.isnan(values)).astype(jnp.float32) * (1.0 if weights is None else weights)
        clip = jax.lax.map(lambda row: self._clip(row[0], row[1], levels), (jnp.abs(values), often))
        if spec.symmetric:
            return -clip, clip
        return at_least(jnp.nanmin(values, axis=1), -clip), at_most(jnp.nanmax(values, axis=1), clip)

    def _clip(self, size: Float[Array, " elements"], often: Float[Array, " elements"], levels: int) -> Float[Array, ""]:
        top = jnp.nanmax(size)
        scaled = size * (1.0 / jnp.where(top > 0, top, 1.0)) * np.float32(self.bins)
        index = jnp.clip(jnp.nan_to_num(scaled), 0, self.bins - 1).astype(jnp.int32)
        counts = jnp.zeros(self.bins).at[index].add(often)
        position = jnp.arange(self.bins)

        def divergence(kept):
            inside = position < kept
            reference = jnp.where(inside, counts, 0.0)
            beyond = jnp.sum(jnp.where(inside, 0.0, counts))
            clipped = reference + jnp.where(position == kept - 1, beyond, 0.0)
            level = jnp.minimum(position * levels // kept, levels - 1)
            filled = (inside & (counts > 0)).astype(jnp.float32)
            mass = jax.ops.segment_sum(reference, level, levels)
            share = jax.ops.segment_sum(filled, level, levels)
            model = (mass * (1.0 / jnp.maximum(share, 1.0)))[level] * filled
            p = clipped * (1.0 / jnp.maximum(jnp.sum(clipped), 1.0))
            q = model * (1.0 / jnp.maximum(jnp.sum(model), 1.0))
            ratio = jnp.log(jnp.maximum(p, 1e-12)) - jnp.log(jnp.maximum(q, 1e-12))
            return jnp.sum(jnp.where(p > 0, p * ratio, 0.0))

        kept = np.unique(np.linspace(min(levels, self.bins // 2), self.bins, self.candidates).astype(np.int32))
        divergences = jax.lax.map(divergence, jnp.asarray(kept))
        best = jnp.asarray(kept)[jnp.argmin(divergences)].astype(jnp.float32)
        return best * top * np.float32(1.0 / self.bins)


def _above(values: Float[Array, "block elements"], weights: Float[Array, "block elements"], tail: float) -> Array:
    """Returns the values that a share ``tail`` of all lies above, interpolated; each value stands ``weights`` times in the order."""
    none = jnp.min(jnp.where(weights > 0, values, jnp.inf), axis=1, keepdims=True)
    values = jnp.where(weights > 0, values, none)
    order = jnp.argsort(-values, axis=1)
    values, weights = (jnp.take_along_axis(x, order, axis=1) for x in (values, weights))
    # Ranks are counted from the end that is asked for, where float32 holds them exactly.
    ends = jnp.cumsum(weights, axis=1)
    asked = np.float32(tail) * (ends[:, -1] - 1.0)
    return jax.vmap(jnp.interp)(asked, ends - (weights + 1.0) / 2.0, values)


def _total(x: Float[Array, "block elements"]) -> Float[Array, " block"]:
    """Sums rows in two stages, so that the float32 error does not grow with their length."""
    width = max(int(x.shape[1] ** 0.5), 1)
    pad = -x.shape[1] % width
    return jnp.sum(jnp.sum(jnp.pad(x, ((0, 0), (0, pad))).reshape(x.shape[0], -1, width), axis=2), axis=1)
