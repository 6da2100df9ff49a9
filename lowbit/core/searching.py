"""Range rules that search among the scales there are: those that the storage of a spec can hold.

A rule that finds a real number and rounds it afterwards judges a grid that is not served. Here every candidate is stored
first, fp8 scales, powers of two and integers of groups included, and the one with the least squared error of its block is
kept. Comparing formats before their scales are searched compares scale rules: `papers/grids.md` has the numbers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from . import blocks as block_ops
from .qtensor import QTensor, quantize_with
from .ranges import Full, RangeRule, ScaleZero
from .scales.bounds import bounded
from .spec import Operand, Spec
from .statistics import MinMax, Sample, Statistic
from .tails import Ends, drawn


@dataclasses.dataclass(frozen=True)
class Searched(RangeRule):
    """The stored scale with the least mean squared error, among multiples of the full range, of both signs where signed.

    Where scales are themselves quantized, their own scale is first that of the full range, then smaller by every fraction
    of ``outer``: each is tried with the best scales under it, and the best is kept for every channel (or tensor).

    Attributes:
        steps: multiples tried, evenly spaced.
        smallest: the smallest multiple of the full range.
        largest: the largest; None: 1.1 for integers, whose levels are evenly spaced, 1.6 for others: the largest value may
            lie best on the second largest level (Cook et al., Four Over Six, 2025, https://arxiv.org/abs/2512.02010).
        outer: multiples of the scale of scales that the full range has.
    """

    steps: int = 64
    smallest: float = 0.4
    largest: float | None = None
    outer: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        top = 1.1 if self.largest is None else self.largest
        if self.steps < 2 or not 0.0 < self.smallest < top or not self.outer or min(self.outer) <= 0.0:
            raise ValueError(
                "Searched needs steps >= 2, 0 < smallest < largest and positive multiples of the outer scale, got "
                f"{self.steps}, {self.smallest}, {self.largest} and {self.outer}"
            )

    def check(self, spec: Spec) -> None:
        if not spec.symmetric or spec.dynamic:
            raise ValueError(f"{type(self).__name__} is for symmetric grids whose scale is stored, got {spec.text}")

    def needs(self, operand: Operand, spec: Spec) -> tuple[Statistic, ...]:
        if not spec.granularity.is_one_per_array:
            raise ValueError(
                f"{type(self).__name__} sees a sample of an input, so its scale is per tensor; got /{spec.granularity.text}"
            )
        return (MinMax(spec.granularity, operand.contract), Sample(), Ends())

    def multiples(self, spec: Spec) -> np.ndarray:
        """Returns the multiples of the full range that are tried, float32."""
        largest = (1.1 if spec.format.is_integer else 1.6) if self.largest is None else self.largest
        multiples = np.linspace(self.smallest, largest, self.steps, dtype=np.float32)
        return np.concatenate([multiples, -multiples]) if spec.has_signed_scales else multiples

    def of_values(self, x: Float[Array, "..."], operand: Operand, spec: Spec) -> ScaleZero:
        self.check(spec)
        x = x.astype(jnp.float32)
        full, _ = Full().of_values(x, operand, spec)
        return self.among(x, full, spec.granularity.blocks(operand), operand, spec), None

    def of_stats(self, stats: Mapping[str, Any], operand: Operand, spec: Spec) -> ScaleZero:
        self.check(spec)
        full, _ = Full().of_stats(stats, operand, spec)
        values, weights = drawn(stats)
        flat = Operand(values.shape, contract=(0,))
        best = self.among(values, full.reshape(1), (values.size,), flat, spec, weights=weights)
        return jax.tree.map(lambda part: part.reshape(full.shape), best), None

    def among(
        self,
        x: Float[Array, "..."],
        full: Float[Array, "..."],
        blocks: tuple[int, ...],
        operand: Operand,
        spec: Spec,
        *,
        weights: Float[Array, "..."] | None = None,
    ) -> "Float[Array, '...'] | QTensor":
        """Returns the best stored scale of every block of ``x``, given that of its full range; ``weights``: how often each counts."""
        storage, multiples = spec.scale, jnp.asarray(self.multiples(spec))
        outer = storage.outer(full, operand)

        def under(outer: Array | None) -> tuple[Any, Array]:
            def tried(multiple: Array) -> tuple[Any, Array]:
                scale = storage.stored(bounded(full * multiple, spec), operand, outer)
                off = quantize_with(x, spec, scale, None, blocks).dequantize() - x
                error = jnp.square(off) if weights is None else jnp.square(off) * weights
                return scale, block_ops.reduce_blocks(error, blocks, jnp.sum)

            def better(best: tuple[Any, Array], multiple: Array) -> tuple[tuple[Any, Array], None]:
                scale, error = tried(multiple)
                return (chosen(error < best[1], scale, best[0]), jnp.where(error < best[1], error, best[1])), None

            return lax.scan(better, tried(multiples[0]), multiples[1:])[0]

        if outer is None:
            return under(None)[0]
        best, least = under(outer * np.float32(self.outer[0]))
        for multiple in self.outer[1:]:
            scale, error = under(outer * np.float32(multiple))
            shared = _shared(full.shape, outer.shape)
            is_less = block_ops.reduce_blocks(error - least, shared, jnp.sum) < 0
            best, least = _whole(is_less, shared, scale, best), _spread(is_less, shared, error, least)
        return best


def chosen(mask: Array, scale: Any, other: Any) -> Any:
    """Returns stored scales, block by block one or the other; their own scales are the same in both."""
    if not isinstance(scale, QTensor):
        return jnp.where(mask, scale, other)
    return dataclasses.replace(scale, codes=jnp.where(mask, scale.codes, other.codes))


def _shared(scales: tuple[int, ...], outer: tuple[int, ...]) -> tuple[int, ...]:
    """How many scales share one of theirs along every axis."""
    return tuple(n if s == 1 else -(-n // s) for n, s in zip(scales, outer, strict=True))


def _spread(mask: Array, blocks: tuple[int, ...], a: Array, b: Array) -> Array:
    """``a`` or ``b`` by blocks of ``mask``."""
    spread = block_ops.spread(mask, a.shape, blocks)
    parts = (block_ops.split(part, blocks) for part in (a, b))
    return block_ops.join(jnp.where(spread, *parts), a.shape, blocks)


def _whole(mask: Array, blocks: tuple[int, ...], scale: Any, other: Any) -> QTensor:
    codes = _spread(mask, blocks, scale.codes, other.codes)
    outer = jnp.where(mask, scale.scale, other.scale)
    return dataclasses.replace(scale, codes=codes, scale=outer)


@dataclasses.dataclass(frozen=True)
class FourOverSix(Searched):
    """The largest value of a block on the largest level or on the second largest of ``fp4``, whichever loses less.

    The scale of the tensor is so large that its largest block scale is 256 and not 448: a block of the largest value may
    then still have half as much again.

    Reference: Cook et al., Four Over Six: More Accurate NVFP4 Quantization with Adaptive Block Scaling, 2025,
    https://arxiv.org/abs/2512.02010, section 3.
    """

    steps: int = 2
    smallest: float = 1.0
    largest: float | None = 1.5
    outer: tuple[float, ...] = (448.0 / 256.0,)

    def check(self, spec: Spec) -> None:
        super().check(spec)
        if spec.format.name != "fp4_e2m1" or spec.scale.spec is None or spec.scale.name != "e4m3":
            raise ValueError(f"FourOverSix is for fp4_e2m1 with e4m3 scales, such as nvfp4; got {spec.text}")
