"""`!quant.uniform` types as data."""

import dataclasses

from lowbit.export.composites import Grid

INT32 = (-(2**31), 2**31 - 1)


@dataclasses.dataclass(frozen=True)
class QuantType:
    """A quantized element type: integers of a storage width, and what they stand for: ``(integer - zero) * scale``.

    Attributes:
        bits: of the storage.
        low: the least integer.
        high: the largest.
        scale: one, or one per index of ``axis``; exact in float64.
        zero: likewise.
        axis: along which scales differ, or None.

    Example:
        >>> print(QuantType(8, -7, 7, (0.5, 0.25), (0, 0), 1))
        !quant.uniform<i8<-7:7>:f32:1, {5.0000000000000000e-01,2.5000000000000000e-01}>
    """

    bits: int
    low: int
    high: int
    scale: tuple[float, ...]
    zero: tuple[int, ...] = (0,)
    axis: int | None = None

    @classmethod
    def of(cls, grid: Grid) -> "QuantType":
        """Returns the type of a grid, stored in 8 bits."""
        return cls(8, *grid.bounds, grid.scale, grid.zero_point, grid.axis)

    @classmethod
    def accumulator(cls, scale: tuple[float, ...], axis: int | None = None) -> "QuantType":
        """Returns the type of int32 sums."""
        return cls(32, *INT32, scale, (0,) * len(scale), axis)

    def __str__(self) -> str:
        numbers = [f"{s:.16e}" + (f":{z}" if z else "") for s, z in zip(self.scale, self.zero, strict=True)]
        storage = f"i{self.bits}<{self.low}:{self.high}>"
        if self.axis is None:
            return f"!quant.uniform<{storage}:f32, {numbers[0]}>"
        return f"!quant.uniform<{storage}:f32:{self.axis}, {{{','.join(numbers)}}}>"

    @property
    def has_zero_inside(self) -> bool:
        """Whether MLIR takes it: zero points lie between the least and the largest integer."""
        return all(self.low <= z <= self.high for z in self.zero)

    def between(self, low: int, high: int) -> "QuantType":
        """Returns the same grid with other bounds."""
        return dataclasses.replace(self, low=low, high=high)
