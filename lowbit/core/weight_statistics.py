"""Scales that follow the weights: recomputed from the current weights in training, stored for serving."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from . import blocks as block_ops
from .extremes import at_most, largest_magnitude, nan_where
from .qtensor import QTensor
from .quantizer import QState, Quantizer
from .scales import check_positive, scale_of_zeros, stored_scale
from .spec import Group, Operand, Spec, Tile

_KEPT_BITS = 24


def exact_mean(x: Float[Array, "..."], blocks: tuple[int, ...], mask: Array | None = None) -> Float[Array, "..."]:
    """Returns the mean of non-negative ``x`` per block, the same bits eagerly, under jit and in any order of summation.

    A float32 sum depends on the order that the compiler picks, so a scale made of one would differ between programs
    by a last bit. Here values become 24-bit integers relative to the largest of their block, and integer sums are exact.

    Args:
        x: float32, any shape, at most 2**26 values per block.
        blocks: elements per scale, per axis.
        mask: of the shape of ``x``: which values count; None counts all.

    Returns:
        float32 of the scale's shape, within 2**-24 of the block's largest value; 0 where nothing counts.
    """
    counted = jnp.ones(x.shape, bool) if mask is None else mask
    x = jnp.where(counted, x, 0.0)
    top = block_ops.reduce_blocks(x, blocks, largest_magnitude)
    unit = jnp.where((top > 0) & (top < jnp.inf), top, 1.0)
    size = int(np.prod([min(n, b) for n, b in zip(x.shape, blocks, strict=True)], initial=1))
    limb = min(31 - max(size, 1).bit_length(), 12)  # bits per partial sum
    if limb < 4:
        raise ValueError(f"exact_mean takes at most 2**26 values per block, got {size}")
    kept = min(_KEPT_BITS - 1, 3 * limb)
    inverse = block_ops.spread(1.0 / unit, x.shape, blocks)
    scaled = block_ops.join(block_ops.split(x, blocks) * inverse, x.shape, blocks)
    whole = jnp.round(at_most(scaled, 1.0) * np.float32(2.0**kept)).astype(jnp.int32)
    total = jnp.zeros(top.shape, jnp.float32)
    for part in (2, 1, 0):  # high to low; products with powers of two are exact
        digits = (whole >> (part * limb)) & ((1 << limb) - 1) if part < 2 else whole >> (2 * limb)
        sums = block_ops.reduce_blocks(digits, blocks, jnp.sum).astype(jnp.float32)
        total = total + sums * np.float32(2.0 ** (part * limb - kept))
    count = block_ops.reduce_blocks(counted.astype(jnp.int32), blocks, jnp.sum).astype(jnp.float32)
    mean = total * (1.0 / jnp.maximum(count, 1.0)) * unit
    return jnp.where(top < jnp.inf, mean, top)  # NaN and inf stay


@dataclasses.dataclass(frozen=True)
class FromWeights(Quantizer):
    """A weight quantizer whose fixed state is a statistic of the weights.

    `train` computes it from the weights it is given, as the papers do; `update` stores it, and `quantize` serves with
    what was stored. So serving is a projection, and training and serving agree to the last bit once `update` has seen
    the weights: that is the declared limit. A training loop must therefore keep the state that a training step returns.
    """

    def __post_init__(self):
        name = type(self).__name__
        check_positive(self.spec, name)
        if not self.spec.symmetric or self.spec.dynamic:
            raise ValueError(f"{name} is for weights and symmetric, got {self.spec.text}")
        if self.spec.scale.spec is not None or isinstance(self.spec.granularity, Tile):
            raise ValueError(f"{name} takes /tensor, /channel or /gN and scales of one float, got {self.spec.text}")

    @abc.abstractmethod
    def statistics(self, values: Float[Array, "..."], blocks: tuple[int, ...]) -> dict[str, Array]:
        """Returns the fixed state of the weights ``values`` (float32): arrays of the scale's shape.

        Blocks with NaN have a state of NaN, whatever this returns for them.
        """

    def init(self, operand: Operand, stats: Mapping[str, Any], key: Array) -> QState:
        if "values" not in stats:
            raise ValueError(f"{type(self).__name__} is for weights; give inputs another quantizer")
        return {"learn": {}, "fixed": self._fixed(stats["values"], self.spec.granularity.blocks(operand))}

    def train(
        self, qstate: QState, x: Float[Array, "..."], operand: Operand, *, key: Array | None, step: Array | None
    ) -> QTensor:
        return self.quantize(self.limit(qstate, x, operand)[1], x, operand)

    def update(self, qstate: QState, stats: Mapping[str, Any]) -> QState:
        if "values" not in stats:
            return qstate
        shape = next(iter(qstate["fixed"].values())).shape
        size = self.spec.granularity.size if isinstance(self.spec.granularity, Group) else 1
        lengths = zip(stats["values"].shape, shape, strict=True)
        blocks = tuple(n if scales == 1 else 1 if scales == n else size for n, scales in lengths)
        return {**qstate, "fixed": self._fixed(stats["values"], blocks)}

    def limit(self, qstate: QState, x: Float[Array, "..."], operand: Operand) -> tuple[Quantizer, QState, int]:
        blocks = self.spec.granularity.blocks(dataclasses.replace(operand, shape=tuple(x.shape)))
        return self, {**qstate, "fixed": self._fixed(x, blocks)}, 0

    def _fixed(self, values: Float[Array, "..."], blocks: tuple[int, ...]) -> dict[str, Array]:
        values = lax.stop_gradient(values).astype(jnp.float32)
        is_nan = jnp.isnan(block_ops.reduce_blocks(values, blocks, largest_magnitude))
        fixed = self.statistics(values, blocks)
        return jax.tree.map(lambda x: lax.stop_gradient(nan_where(is_nan, x)), fixed)


def positive_scale(scale: Float[Array, "..."], spec: Spec) -> Float[Array, "..."]:
    """Returns ``scale`` as stored, with that of a block of zeros where it is 0."""
    stored = stored_scale(jnp.where(scale == 0, scale_of_zeros(spec), scale), spec)
    assert not isinstance(stored, QTensor)
    return stored
