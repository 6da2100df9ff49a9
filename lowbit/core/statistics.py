"""Statistics of operands, folded over batches: ``init``, ``update``, ``finish``, all pure.

A quantizer names what it wants by returning these from ``needs``; observation folds them where the operand appears,
also inside scans and loops, and `Statistic.across` reduces them over the mesh axes that shard the operand.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from . import blocks as block_ops
from .extremes import has_not_finite, larger, largest, nan_where, smaller, smallest
from .spec import Granularity, Operand

State = Any

_SEED = 1985
"""Of the draws of `Sample`: fixed, so that the same batches give the same sample."""


@dataclasses.dataclass(frozen=True)
class Statistic(abc.ABC):
    """One statistic of one operand or result of an operation. Subclasses are final, frozen dataclasses.

    ``init`` is given the operand with the shapes of the first batch, ``update`` with those of its own. Both are of one
    layer: a leading stack axis of the operand is mapped over.
    """

    name: ClassVar[str]
    """The key under which the finished value reaches `Quantizer.init`."""

    is_of_product: ClassVar[bool] = False
    """Whether it is of what the operation multiplies: in a quantized model, of the operand on its own grid.

    Else it is of what comes before that grid, which is what ranges are found from. In float the two are one.
    """

    beside: ClassVar[str] = ""
    """What `update` gets as ``beside=``, or "" for nothing.

    ``"float"``: the same operand in the float model; ``"gradient"``: the gradient of the loss by the operation's result.
    """

    is_exact: ClassVar[bool] = True
    """Whether batches in any order, folded or merged, give the same state to the last bit.

    Sums of floats give it within a bound, and moving averages depend on the order: that is what they are.
    """

    @abc.abstractmethod
    def init(self, operand: Operand) -> State:
        """Returns the state before the first batch."""

    @abc.abstractmethod
    def update(self, state: State, x: Shaped[Array, "..."], operand: Operand, *, beside: Array | None = None) -> State:
        """Returns the state after the values ``x``, which are those of ``operand``."""

    def merge(self, state: State, other: State) -> State:
        """Returns the state after the batches of both: of ``state`` first, then of ``other``.

        Raises:
            TypeError: for a statistic that cannot be merged.
        """
        raise TypeError(f"{type(self).__name__} cannot merge two states: fold all batches into one")

    @abc.abstractmethod
    def across(self, state: State, axis_names: tuple[str, ...]) -> State:
        """Returns the state reduced over mesh axes, inside `jax.shard_map`."""

    def finish(self, state: State) -> Any:
        """Returns the value a quantizer reads."""
        return state


def _scale_shape(granularity: Granularity, operand: Operand) -> tuple[int, ...]:
    return block_ops.scale_shape(operand.shape, granularity.blocks(operand))


@dataclasses.dataclass(frozen=True)
class NotFinite(Statistic):
    """Whether there has been NaN or infinity, how many batches, and whether any value was not 0: of every site, lest it goes unseen."""

    name = "not_finite"

    def init(self, operand: Operand) -> State:
        return jnp.zeros((), bool), jnp.zeros((), jnp.int32), jnp.zeros((), bool)

    def update(self, state: State, x: Shaped[Array, "..."], operand: Operand, *, beside: Array | None = None) -> State:
        is_bad, seen, filled = state
        is_bad = is_bad | has_not_finite(x) if jnp.issubdtype(x.dtype, jnp.inexact) else is_bad
        return is_bad, seen + 1, filled | jnp.any(x != 0)

    def merge(self, state: State, other: State) -> State:
        return state[0] | other[0], state[1] + other[1], state[2] | other[2]

    def across(self, state: State, axis_names: tuple[str, ...]) -> State:
        is_bad, seen, filled = (lax.pmax(each.astype(jnp.int32), axis_names) for each in state)
        return is_bad > 0, seen, filled > 0


@dataclasses.dataclass(frozen=True)
class Total(Statistic):
    """A sum over all values, an array: subclasses say of what. Of counts it is exact, of floats they say that it is not."""

    def merge(self, state: State, other: State) -> State:
        return state + other

    def across(self, state: State, axis_names: tuple[str, ...]) -> State:
        return lax.psum(state, axis_names)


@dataclasses.dataclass(frozen=True)
class Extremes(Statistic):
    """Smallest and largest value per block: ``(low, high)``, each of the scale's shape. Subclasses say how batches are joined."""

    granularity: Granularity
    contract: tuple[int, ...] = ()

    def init(self, operand: Operand) -> State:
        shape = _scale_shape(self.granularity, operand)
        return jnp.full(shape, jnp.inf, jnp.float32), jnp.full(shape, -jnp.inf, jnp.float32), jnp.zeros((), jnp.int32)

    def batch(self, x: Float[Array, "..."]) -> tuple[Array, Array]:
        """Returns the smallest and largest value per block of one batch."""
        x = x.astype(jnp.float32)
        blocks = self.granularity.blocks(Operand(x.shape, contract=self.contract))
        return block_ops.reduce_blocks(x, blocks, smallest), block_ops.reduce_blocks(x, blocks, largest)

    def across(self, state: State, axis_names: tuple[str, ...]) -> State:
        low, high, seen = state
        return lax.pmin(low, axis_names), lax.pmax(high, axis_names), lax.pmax(seen, axis_names)

    def finish(self, state: State) -> Any:
        low, high, _ = state
        return low, high


@dataclasses.dataclass(frozen=True)
class MinMax(Extremes):
    """Smallest and largest value per block over all batches."""

    name = "minmax"

    def update(self, state: State, x: Shaped[Array, "..."], operand: Operand, *, beside: Array | None = None) -> State:
        if x.size == 0:
            return state
        low, high, seen = state
        now_low, now_high = self.batch(x)
        return smaller(low, now_low), larger(high, now_high), seen + 1

    def merge(self, state: State, other: State) -> State:
        (low, high, seen), (other_low, other_high, more) = state, other
        return smaller(low, other_low), larger(high, other_high), seen + more


@dataclasses.dataclass(frozen=True)
class MovingMinMax(Extremes):
    """Moving averages of the smallest and largest value per batch (Krishnamoorthi, 2018, section 3.1.1).

    The average is debiased: the first batch counts fully.
    """

    decay: float = 0.9

    name = "moving_minmax"
    is_exact = False

    def __post_init__(self):
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")

    def _decayed(self, batches: Array) -> Array:
        return jnp.float32(self.decay) ** batches.astype(jnp.float32)

    def update(self, state: State, x: Shaped[Array, "..."], operand: Operand, *, beside: Array | None = None) -> State:
        if x.size == 0:
            return state
        low, high, seen = state
        now_low, now_high = self.batch(x)
        before = self._decayed(seen)
        keep = self.decay * (1.0 - before) / (1.0 - self.decay * before)
        first = seen == 0
        low = jnp.where(first, now_low, keep * low + (1.0 - keep) * now_low)
        high = jnp.where(first, now_high, keep * high + (1.0 - keep) * now_high)
        return low, high, seen + 1

    def merge(self, state: State, other: State) -> State:
        (low, high, seen), (other_low, other_high, more) = state, other
        # ``seen`` batches weigh 1 - decay**seen together; the older state is decayed by the batches of the younger one.
        older, younger = self._decayed(more) * (1.0 - self._decayed(seen)), 1.0 - self._decayed(more)
        keep = older / jnp.maximum(older + younger, jnp.finfo(jnp.float32).tiny)

        def joined(a: Array, b: Array) -> Array:
            return jnp.where(more == 0, a, jnp.where(seen == 0, b, keep * a + (1.0 - keep) * b))

        return joined(low, other_low), joined(high, other_high), seen + more


@dataclasses.dataclass(frozen=True)
class Sample(Statistic):
    """A uniform sample of all values of all batches: each is kept as likely as any other, whatever its batch and its size.

    A reservoir of independent places: after a batch of ``n`` values, ``N`` with those before, a place takes one of the
    batch with probability ``n / N``, else keeps its own (Vitter, Random sampling with a reservoir, ACM TOMS 1985, with a
    place for each of the sample's values). A place has its own stretch of every batch, ``1 / size`` of it, so that the
    sample of one batch is spread over all of it; where in the stretch is drawn.

    The draws depend on the number of batches alone: the same batches give the same sample, and folding may stop and go on
    from the state. A NaN in any batch makes the whole sample NaN: chance must not hide it.

    Attributes:
        size: values kept; with repeats where there are fewer.
    """

    size: int = 16384

    name = "sample"
    is_exact = False

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")

    def init(self, operand: Operand) -> State:
        """Returns the state: values, how many have been seen (float32: a share is asked of it), and batches."""
        return jnp.zeros((self.size,), jnp.float32), jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)

    def update(
        self, state: State, x: Shaped[Array, "..."], operand: Operand | None = None, *, beside: Array | None = None
    ) -> State:
        """Returns the state after the values ``x``; whose they are makes no difference to a sample."""
        if x.size == 0:
            return state
        kept, count, batches = state
        flat = x.astype(jnp.float32).reshape(-1)
        takes, where = jax.random.uniform(jax.random.fold_in(jax.random.key(_SEED), batches), (2, self.size))
        total = count + flat.size
        is_nan = jnp.any(jnp.isnan(flat)) | jnp.isnan(kept[0])
        kept = jnp.where(takes * total < flat.size, flat[self._places(flat.size, where)], kept)
        return nan_where(is_nan, kept), total, batches + 1

    def _places(self, count: int, where: Float[Array, " size"]) -> Array:
        """One index of ``count`` for each place: within its stretch, as ``where`` (in [0, 1)) says."""
        i = np.arange(self.size, dtype=np.int64)
        start, end = (i * count // self.size), ((i + 1) * count // self.size)
        width = np.maximum(end - start, 1)
        within = jnp.minimum((where * width.astype(np.float32)).astype(jnp.int32), (width - 1).astype(np.int32))
        return jnp.asarray(start.astype(np.int32)) + within

    def merge(self, state: State, other: State) -> State:
        (kept, count, batches), (others, more, later) = state, other
        total = count + more
        takes = jax.random.uniform(jax.random.fold_in(jax.random.key(_SEED + 1), batches + later), (self.size,))
        merged = jnp.where(takes * total < more, others, kept)
        is_nan = jnp.isnan(kept[0]) | jnp.isnan(others[0])
        return nan_where(is_nan, merged), total, batches + later

    def across(self, state: State, axis_names: tuple[str, ...]) -> State:
        kept, count, batches = state
        shards = lax.psum(1, axis_names)
        every = lax.all_gather(kept, axis_names, tiled=False).reshape(shards, self.size)
        counts = lax.all_gather(count, axis_names, tiled=False).reshape(shards)
        ends = jnp.cumsum(counts)
        takes = jax.random.uniform(jax.random.fold_in(jax.random.key(_SEED + 2), batches), (self.size,)) * ends[-1]
        row = jnp.minimum(jnp.searchsorted(ends, takes, side="right"), shards - 1)
        is_nan = jnp.any(jnp.isnan(every[:, 0]))
        mixed = nan_where(is_nan, every[row, jnp.arange(self.size)])
        return mixed, ends[-1], lax.pmax(batches, axis_names)

    def finish(self, state: State) -> Any:
        return state[0]
