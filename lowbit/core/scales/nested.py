"""Scales that are themselves quantized: small numbers on a grid of their own, whose scale is a float32."""

import abc
import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lowbit.core import blocks as block_ops
from lowbit.core.blocks import Dim
from lowbit.core.extremes import at_least, largest_magnitude
from lowbit.core.gradients import straight_through
from lowbit.core.operand import Operand
from lowbit.core.qtensor import QTensor, quantize_with
from lowbit.core.spec import Spec
from lowbit.core.storage import Storage

_SMALLEST_OUTER = 2.0**-100


@dataclasses.dataclass(frozen=True)
class Nested(Storage):
    """Scales on a symmetric grid of their own: the largest takes the largest level, none becomes zero.

    Attributes:
        numbers: the spec of the scales.
    """

    numbers: Spec

    @property
    def bits(self) -> float:
        return float(self.numbers.format.bits)

    @property
    def spec(self) -> Spec:
        return self.numbers

    @abc.abstractmethod
    def blocks(self, shape: tuple[Dim, ...], operand: Operand | None) -> tuple[Dim, ...]:
        """Returns which scales of ``shape`` share a scale of their own: how many along every axis."""

    def outer(self, scale: Float[Array, "..."], operand: Operand | None) -> Float[Array, "..."]:
        blocks = self.blocks(tuple(scale.shape), operand)
        largest = block_ops.reduce_blocks(lax.stop_gradient(scale), blocks, largest_magnitude)
        return at_least(largest * np.float32(1.0 / self.numbers.format.high), _SMALLEST_OUTER)

    def stored(
        self, scale: Float[Array, "..."], operand: Operand | None, outer: Float[Array, "..."] | None = None
    ) -> QTensor:
        numbers = self.numbers.format

        def nearest(x: Array, _: object, high: Array | float) -> Array:
            size = at_least(jnp.abs(x), numbers.smallest)
            level = numbers.nearest(size, 0.0, high)
            return straight_through(x, jnp.where(x < 0, -level, level))

        outer = self.outer(scale, operand) if outer is None else outer
        blocks = self.blocks(tuple(scale.shape), operand)
        return quantize_with(scale, self.numbers, outer, None, blocks, nearest=nearest)
