"""The grid of one weight in matrix form: which values its entries may take."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .matrix import MatrixView
from .qtensor import QTensor
from .rounding import rounded_product
from .spec import Format


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Grid:
    """The values ``(level - zero) * scale`` that the entries of a weight ``[K, N]`` may take.

    ``K`` runs over the contracted axes in leaf order, ``N`` over the outputs. Every row of ``K`` belongs to one group,
    and every group has a scale (and, where affine, a zero point) per output. A scale may be negative: the grid of a
    format whose lowest level is the largest in magnitude is then mirrored. A grid of several matrices has them in front, in
    every array: `jax.vmap` takes them one by one.

    Attributes:
        scale: float32, of magnitude ``2**-126`` at least.
        zero: integer-valued float32, or None.
        group: the group of every row of ``K``.
        format: the levels.
        bounds: lowest and highest level, where they are data and not the format's: one compiled program then serves
            integers of every width.
    """

    # `Any`: as a pytree it also holds what `jax.tree.map` and `jax.vmap` put in place of arrays.
    scale: "Float[Array, '*matrix group out'] | Any"
    zero: "Float[Array, '*matrix group out'] | Any | None"
    group: "Int[Array, '*matrix in'] | Any"
    format: Format = dataclasses.field(metadata={"static": True})
    bounds: "Float[Array, '*matrix two'] | Any | None" = None

    @property
    def low(self) -> Any:
        """The lowest level."""
        return self.format.low if self.bounds is None else self.bounds[0]

    @property
    def high(self) -> Any:
        """The highest level."""
        return self.format.high if self.bounds is None else self.bounds[1]

    def levels(self, values: Float[Array, "in out"]) -> Float[Array, "in out"]:
        """Returns the nearest level of every value, zero point included; float32."""
        zero = None if self.zero is None else self.zero[self.group]
        return self.nearest_levels(values, self.scale[self.group], zero)

    def nearest_levels(self, values: Float[Array, "..."], scale: Float[Array, "..."], zero: Any) -> Float[Array, "..."]:
        """Returns the levels of ``values`` on scales and zero points that broadcast against them; see `nearest_levels`."""
        return nearest_levels(values, scale, zero, self.format, self.low, self.high)

    def values(self, levels: Float[Array, "in out"]) -> Float[Array, "in out"]:
        """Returns ``(level - zero) * scale``, rounded once; float32."""
        centered = levels if self.zero is None else levels - self.zero[self.group]
        return rounded_product(centered, self.scale[self.group])

    def nearest(self, values: Float[Array, "in out"]) -> Float[Array, "in out"]:
        """Returns the nearest value of the grid: round to nearest."""
        return self.values(self.levels(values))


def nearest_levels(
    values: Float[Array, "..."],
    scale: Float[Array, "..."],
    zero: Float[Array, "..."] | None,
    numbers: Format,
    low: Any = None,
    high: Any = None,
) -> Float[Array, "..."]:
    """Returns the levels of ``values``: ``nearest(clip(x * (1 / s), low - zero, high - zero)) + zero``, as `quantize_with`.

    Args:
        values: float32.
        scale: broadcasts against ``values``; either sign.
        zero: integer-valued float32 of the scale's shape, or None.
        numbers: the format.
        low: the lowest level; None: the format's.
        high: the highest.
    """
    scaled = values * (1.0 / scale)
    low, high = numbers.low if low is None else low, numbers.high if high is None else high
    if zero is None:
        return numbers.nearest(scaled, low, high)
    return numbers.nearest(scaled, low - zero, high - zero) + zero


def grid_of(q: QTensor, view: MatrixView, stack: int = 0) -> Grid:
    """Returns the grid that a weight is on, a leading axis for its matrices in every array.

    Args:
        q: the weight, in leaf coordinates; only scale and zero point are read.
        view: how it is read as matrices.
        stack: how many leading axes count layers.
    """
    group, scales = view.groups(q.spec, stack)
    matrices, _, _ = view.size
    zero = None if q.zero is None else scales.matrices(q.zero.astype(jnp.float32))
    return Grid(
        scales.matrices(q.scale_values), zero, jnp.broadcast_to(group, (matrices, group.shape[0])), q.spec.format
    )
