"""Grids of one reach and several widths: what learned bits are blended from, and the grid that they become.

The step of ``b`` bits is ``reach 2^-b``, of signed integers ``reach 2^(1 - b)``: a bit more halves it, exactly, so that levels of
all widths are counted in steps of one of them without another rounding.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.core import blocks as block_ops
from lowbit.core.extremes import at_most
from lowbit.core.gradients import scale_gradient, straight_through
from lowbit.core.powers import power_of_two
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.quantizer import QState, Quantizer
from lowbit.core.ranges import MSE, Full
from lowbit.core.scales import check_positive, stored_scale
from lowbit.core.spec import Operand, Spec, Tensor
from lowbit.core.statistics import Statistic

from .integer import Integer

LEAST, MOST = 2, 8
"""Bits of a code while widths are learned."""


def ends(bits: Float[Array, "..."], *, is_signed: bool) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Returns the lowest and highest level of integers of so many bits, 1 to 8, which may differ by block.

    Example:
        >>> [end.tolist() for end in ends(jnp.array([2.0, 8.0]), is_signed=True)]
        [[-2.0, -128.0], [1.0, 127.0]]
    """
    top = power_of_two(bits.astype(jnp.int32) - int(is_signed))
    return (-top if is_signed else jnp.zeros_like(top)), top - 1.0


def check_learned(spec: Spec, who: str, start: int, scales: tuple[str, ...]) -> None:
    """Raises ValueError where learned widths cannot begin with a spec, or with so many bits.

    Args:
        spec: as the quantizer has it: `int8` or `uint8`.
        who: the method, for errors.
        start: bits that training begins with.
        scales: names of the dtypes that scales may have.
    """
    check_positive(spec, who)
    if not LEAST <= start <= MOST:
        raise ValueError(f"{who} begins with {LEAST} to {MOST} bits, got {start}")
    if not isinstance(spec.format, Integer) or spec.format.narrow or not spec.symmetric:
        raise ValueError(f"{who} needs integers without zero points, got {spec.text}")
    if spec.dynamic or spec.scale.spec is not None or spec.scale.name not in scales:
        raise ValueError(f"{who} needs stored scales in {' or '.join(scales)}, got {spec.text}")


@dataclasses.dataclass(frozen=True)
class FixedWidths(Quantizer):
    """What learned widths become: integers of the spec's bits, or of fewer where a block ends earlier.

    Calibrated anew, every block has the spec's bits, and its full range.
    """

    def needs(self, operand: Operand) -> tuple[Statistic, ...]:
        return () if operand.is_weight else Full().needs(operand, self.spec)

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        if "values" in stats:
            scale, _ = Full().of_values(stats["values"], operand, self.spec)
        else:
            scale, _ = Full().of_stats(stats, operand, self.spec)
        scale = jnp.asarray(stored_scale(scale, self.spec, operand))  # of a plain spec there is one array
        return {
            "learn": {},
            "fixed": {"scale": scale, "bits": jnp.full(scale.shape, float(self.spec.format.bits), jnp.float32)},
        }

    def served_by_spec(self) -> bool:
        return isinstance(self.spec.granularity, Tensor)  # one block, which has the bits of the spec

    @property
    def is_nearest(self) -> bool:
        return False  # a block of fewer bits than the spec's ends before the spec's grid does

    def widths(self, qstate: QState) -> Float[Array, "..."]:
        return qstate["fixed"]["bits"]

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        bits = block_ops.spread(qstate["fixed"]["bits"], x.shape, blocks)
        low, high = ends(bits, is_signed=self.spec.format.is_signed)

        def nearest(cut: Array, *_: Array | float) -> Array:
            return self.spec.format.nearest(cut, low, high)

        return quantize_with(x, self.spec, qstate["fixed"]["scale"], None, blocks, nearest=nearest)


def fixed(spec: Spec, scale: Float[Array, "..."], bits: Float[Array, "..."]) -> tuple[Quantizer, QState]:
    """Returns the quantizer of widths that are learned no more, its spec with the bits of the widest, and its state."""
    widest = max(int(np.max(np.asarray(bits))), LEAST)
    widest_spec = dataclasses.replace(spec, format=Integer(widest, signed=spec.format.is_signed))
    return FixedWidths(widest_spec), {"learn": {}, "fixed": {"scale": scale, "bits": bits}}


@dataclasses.dataclass(frozen=True)
class LearnedWidths(Quantizer):
    """What learned widths have in common: they must be hardened, and blocks of fewer bits than the spec's end before its grid.

    Attributes:
        start: bits that training begins with.
    """

    start: int = 6

    @property
    def _sign(self) -> int:
        return int(self.spec.format.is_signed)

    @property
    def is_hard(self) -> bool:
        return False

    @property
    def is_nearest(self) -> bool:
        return False


@dataclasses.dataclass(frozen=True)
class Blended(LearnedWidths):
    """A sum of grids of several widths, and a learned reach that they share; what is served is one of them.

    The reach begins with the least squared error at ``start`` bits, and learns as the step of LSQ does.
    """

    def __post_init__(self):
        check_learned(self.spec, type(self).__name__, self.start, ("float32", "bfloat16"))

    @abc.abstractmethod
    def first(self, shape: tuple[int, ...]) -> QState:
        """Returns what is learned of widths, and what is fixed, for scales of a shape."""

    @abc.abstractmethod
    def parts(self, qstate: QState) -> Sequence[tuple[Float[Array, "..."], Float[Array, "..."]]]:
        """Returns ``(bits, share)`` of every grid: integers without gradient, and shares that add up to 1."""

    @abc.abstractmethod
    def chosen(self, qstate: QState) -> Float[Array, "..."]:
        """Returns the bits of the grid that is served, integers without gradient."""

    def needs(self, operand: Operand) -> tuple[Statistic, ...]:
        return () if operand.is_weight else MSE(ends=0).needs(operand, self.spec)

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        first = dataclasses.replace(self.spec, format=Integer(self.start, signed=self.spec.format.is_signed))
        if "values" in stats:
            scale, _ = MSE(ends=0).of_values(stats["values"].astype(jnp.float32), operand, first)
        else:
            scale, _ = MSE(ends=0).of_stats(stats, operand, first)
        scale = jnp.asarray(scale, jnp.float32)  # of a plain spec there is one array
        reach = at_most(scale * np.float32(2.0 ** (self.start - self._sign)), 2.0**126)
        start = self.first(scale.shape)
        return {"learn": {"reach": reach, **start["learn"]}, "fixed": start["fixed"]}

    def hardened(self, qstate: QState, operand: Operand) -> tuple[Quantizer, QState]:
        bits = self.chosen(qstate)
        return fixed(self.spec, self._scale(qstate, bits, operand), bits)

    def _scale(self, qstate: QState, bits: Float[Array, "..."], operand: Operand) -> Any:
        blocks = self.spec.granularity.blocks(operand)
        sides = list(zip(operand.shape, blocks, strict=True))[0 if operand.is_weight else 1 :]
        count = math.prod(min(n, b) for n, b in sides) or 1  # of one example, where it is an input
        reach = scale_gradient(jnp.abs(qstate["learn"]["reach"]), 1.0 / math.sqrt(count))
        return stored_scale(reach * power_of_two(self._sign - bits.astype(jnp.int32)), self.spec, operand)

    def _on_grids(self, qstate: QState, x: Array, operand: Operand, *, is_training: bool) -> QTensor:
        operand = dataclasses.replace(operand, shape=tuple(x.shape))
        blocks = self.spec.granularity.blocks(operand)
        unit = self.chosen(qstate)

        def level(cut: Array, bits: Array) -> Array:
            """The nearest level of so many bits, in steps of the unit."""
            low, high = (block_ops.spread(e, x.shape, blocks) for e in ends(bits, is_signed=self._sign > 0))
            finer, coarser = (
                block_ops.spread(power_of_two(k.astype(jnp.int32)), x.shape, blocks) for k in (bits - unit, unit - bits)
            )
            return self.spec.format.nearest(cut * finer, low, high) * coarser

        def nearest(cut: Array, *_: Array | float) -> Array:
            shares = [
                (level(cut, bits), block_ops.spread(share, x.shape, blocks)) for bits, share in self.parts(qstate)
            ]
            soft = sum((on_grid * share for on_grid, share in shares[1:]), shares[0][0] * shares[0][1])
            return soft if is_training else straight_through(soft, level(cut, unit))

        return quantize_with(x, self.spec, self._scale(qstate, unit, operand), None, blocks, nearest=nearest)

    def quantize(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> QTensor:
        return self._on_grids(qstate, x, operand, is_training=False)

    def train(
        self, qstate: QState, x: Float[Array, "..."], operand: Operand, *, key: Array | None, step: Array | None
    ) -> QTensor:
        return self._on_grids(qstate, x, operand, is_training=True)
