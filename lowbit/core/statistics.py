"""Statistics of operands, folded over batches: ``init``, ``update``, ``finish``, all pure.

A quantizer names what it wants by returning these from ``needs``; observation folds them where the operand appears,
also inside scans and loops, and `Statistic.across` reduces them over the mesh axes that shard the operand.
"""

import abc
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from . import blocks as block_ops
from .spec import Granularity, Operand

State = Any


@dataclasses.dataclass(frozen=True)
class Statistic(abc.ABC):
    """One statistic of one operand. Subclasses are final, frozen dataclasses.

    The shapes seen by `update` are those of one layer: a leading stack axis of the operand is mapped over.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The key under which the finished value reaches `Quantizer.init`."""

    @abc.abstractmethod
    def init(self, operand: Operand) -> State:
        """Returns the state before the first batch."""

    @abc.abstractmethod
    def update(self, state: State, x: Float[Array, "..."]) -> State:
        """Returns the state after the values ``x``."""

    @abc.abstractmethod
    def across(self, state: State, axis_names: tuple[str, ...]) -> State:
        """Returns the state reduced over mesh axes, inside `jax.shard_map`."""

    def finish(self, state: State) -> Any:
        """Returns the value a quantizer reads."""
        return state


def _scale_shape(granularity: Granularity, operand: Operand) -> tuple[int, ...]:
    return block_ops.scale_shape(operand.shape, granularity.blocks(operand))


@dataclasses.dataclass(frozen=True)
class MinMax(Statistic):
    """Smallest and largest value per block over all batches: ``(low, high)``, each of the scale's shape."""

    granularity: Granularity
    contract: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return "minmax"

    def init(self, operand: Operand) -> State:
        shape = _scale_shape(self.granularity, operand)
        return jnp.full(shape, jnp.inf, jnp.float32), jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros((), jnp.int32)

    def batch(self, x: Float[Array, "..."]) -> tuple[Array, Array]:
        """Returns the smallest and largest value per block of one batch."""
        x = x.astype(jnp.float32)
        blocks = self.granularity.blocks(Operand(x.shape, contract=self.contract))
        return block_ops.reduce_blocks(x, blocks, jnp.min), block_ops.reduce_blocks(x, blocks, jnp.max)

    def update(self, state: State, x: Float[Array, "..."]) -> State:
        low, high, seen = state
        now_low, now_high = self.batch(x)
        return jnp.minimum(low, now_low), jnp.maximum(high, now_high), seen + 1

    def across(self, state: State, axis_names: tuple[str, ...]) -> State:
        low, high, seen = state
        return lax.pmin(low, axis_names), lax.pmax(high, axis_names), lax.pmax(seen, axis_names)

    def finish(self, state: State) -> Any:
        low, high, _ = state
        return low, high


@dataclasses.dataclass(frozen=True)
class MovingMinMax(MinMax):
    """Moving averages of the smallest and largest value per batch (Krishnamoorthi, 2018, section 3.1.1).

    The average is debiased: the first batch counts fully.
    """

    decay: float = 0.9

    def __post_init__(self):
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")

    @property
    def name(self) -> str:
        return "moving_minmax"

    def update(self, state: State, x: Float[Array, "..."]) -> State:
        low, high, seen = state
        now_low, now_high = self.batch(x)
        keep = self.decay * (1.0 - self.decay**seen) / (1.0 - self.decay ** (seen + 1.0))
        first = seen == 0
        low = jnp.where(first, now_low, keep * low + (1.0 - keep) * now_low)
        high = jnp.where(first, now_high, keep * high + (1.0 - keep) * now_high)
        return low, high, seen + 1


@dataclasses.dataclass(frozen=True)
class Sample(Statistic):
    """A sample of the values: one of every stretch of a batch and, as a reservoir, of every batch.

    Where in its stretch a value is taken is scattered: at equal distances, a stretch that is a multiple of the channels
    would show one channel only.

    Attributes:
        size: values kept. The replacement pattern is fixed, so the same batches give the same sample.
    """

    size: int = 16384

    @property
    def name(self) -> str:
        return "sample"

    def init(self, operand: Operand) -> State:
        return jnp.zeros((self.size,), jnp.float32), jnp.zeros((), jnp.int32)

    def update(self, state: State, x: Float[Array, "..."]) -> State:
        kept, seen = state
        flat = x.astype(jnp.float32).reshape(-1)
        fresh = flat[self.places(flat.size)]
        turn = (jnp.arange(self.size, dtype=jnp.uint32) * jnp.uint32(2654435761)) >> jnp.uint32(8)
        replace = turn % (seen.astype(jnp.uint32) + jnp.uint32(1)) == 0
        return jnp.where(replace, fresh, kept), seen + 1

    def places(self, count: int) -> np.ndarray:
        """Returns the indices taken of ``count`` values, the same every time; with repeats where there are fewer."""
        i = np.arange(self.size, dtype=np.uint64)
        start, end = i * count // self.size, (i + 1) * count // self.size
        return (start + (i * 2654435761 % 2**32 >> 8) % np.maximum(end - start, 1)).astype(np.int32)

    def across(self, state: State, axis_names: tuple[str, ...]) -> State:
        kept, seen = state
        count = lax.psum(1, axis_names)
        every = lax.all_gather(kept, axis_names, tiled=False).reshape(count, self.size)
        row = jnp.arange(self.size) % count
        return every[row, jnp.arange(self.size)], lax.pmax(seen, axis_names)

    def finish(self, state: State) -> Any:
        return state[0]
