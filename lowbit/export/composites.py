"""Quantization as JAX primitives that lower to StableHLO composites: what edge compilers recognise, and any other runs.

=====================  ============================  ===================  ========================================
primitive              composite                     from -> to           value
=====================  ============================  ===================  ========================================
``quant_dequantize``   ``quant.dequantize``          integers -> float32  ``(code - zero) * scale``
``quant_fake_quant``   ``quant.fake_quant``          float32 -> float32   ``(level - zero) * scale``
``quant_quantize``     ``quant.quantize``            float32 -> integers  ``level``
=====================  ============================  ===================  ========================================

with ``level = round(clip(x * (1 / scale), low - zero, high - zero)) + zero``, ties to even: the arithmetic of
`lowbit.core.qtensor`, in float32, every product rounded once. It is the composite's decomposition, so a compiler that does
not know the composite computes the same numbers. All three are elementwise and keep the shape.

Parameters, all static, the same for the three primitives:

* ``dtype``: the integers, text: ``i2 i4 i8 i16``, other widths (``i6``) and unsigned ones (``ui8``) likewise; the codes of
  ``quant_dequantize`` are stored in `storage_dtype` of it;
* ``scale``: tuple of floats (float32 values), one per tensor or one per index of ``axis``;
* ``zero_point``: tuple of ints, as long as ``scale``;
* ``axis``: int, or None where one scale is for the whole tensor;
* ``narrow``: whether the lowest code (signed) or the highest (unsigned) is unused.

The composite's attributes: ``dtype`` text, ``scale`` float32, ``zero_point`` int64, ``narrow_range`` bool and, per axis,
``quantization_dimension`` int32. For export only: the primitives have no derivative and no batching rule.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxtyping import Array, Float, Integer

from lowbit.core.rounding import nearest_even, rounded_product


@dataclasses.dataclass(frozen=True)
class Grid:
    """The static parameters of one use, as text and tuples: what the primitives take.

    Attributes:
        dtype: ``i8`` and the like.
        scale: one per tensor or per index of ``axis``.
        zero_point: likewise.
        axis: along which scales differ, or None.
        narrow: whether the lowest code (signed) or the highest (unsigned) is unused.

    Example:
        >>> (
        ...     Grid("i4", (0.5,), (0,)).bounds,
        ...     Grid("ui8", (0.5,), (3,)).bounds,
        ...     Grid("i8", (1.0,), (0,), narrow=True).bounds,
        ... )
        ((-8, 7), (0, 255), (-127, 127))
    """

    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None = None
    narrow: bool = False

    @property
    def bits(self) -> int:
        """Bits of the integers."""
        return int(self.dtype.lstrip("ui"))

    @property
    def is_signed(self) -> bool:
        """Whether they have a sign."""
        return not self.dtype.startswith("u")

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest code."""
        if self.is_signed:
            return -(2 ** (self.bits - 1)) + self.narrow, 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1 - self.narrow

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of a primitive."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def storage_dtype(dtype: str) -> Any:
    """Returns the array dtype that integers of a width are stored in: 2, 4, 8 or 16 bits.

    Example:
        >>> [str(storage_dtype(word)) for word in ("i2", "i3", "i6", "ui8", "i16")]
        ['int2', 'int4', 'int8', 'uint8', 'int16']
    """
    bits = next(width for width in (2, 4, 8, 16) if int(dtype.lstrip("ui")) <= width)
    return jnp.dtype(f"{'uint' if dtype.startswith('u') else 'int'}{bits}")


def dequantize(codes: Integer[Array, "..."], grid: Grid) -> Float[Array, "..."]:
    """Returns the float32 values of codes on a grid."""
    return dequantize_p.bind(codes, **grid.params)


def fake_quant(x: Float[Array, "..."], grid: Grid) -> Float[Array, "..."]:
    """Returns float32 ``x`` rounded to a grid, in float32."""
    return fake_quant_p.bind(x, **grid.params)


def quantize(x: Float[Array, "..."], grid: Grid) -> Integer[Array, "..."]:
    """Returns the codes of float32 ``x`` on a grid. NaN has no code and becomes what the compiler casts it to."""
    return quantize_p.bind(x, **grid.params)


# A constant written by the lowering rule: `lax.composite` would make an array of its decomposition an operand, which
# converters do not take.
_array_p = Primitive("quant_array")
_array_p.def_impl(lambda *, values, shape, dtype: jnp.asarray(np.asarray(values, dtype).reshape(shape)))
_array_p.def_abstract_eval(lambda *, values, shape, dtype: ShapedArray(shape, jnp.dtype(dtype)))
mlir.register_lowering(
    _array_p,
    lambda ctx, *, values, shape, dtype: [mlir.ir_constant(np.asarray(values, dtype).reshape(shape))],
)


def _spread(values: Sequence[float], grid: Grid, rank: int) -> Array:
    """One number per tensor or axis, shaped to broadcast."""
    shape = [1] * rank
    if grid.axis is not None:
        shape[grid.axis] = len(values)
    return _array_p.bind(values=tuple(values), shape=tuple(shape), dtype="float32")


def _inverse(grid: Grid) -> list[float]:
    return [float(np.float32(1.0) / np.float32(s)) for s in grid.scale]


def _steps(x: Array, grid: Grid) -> Array:
    """Whole steps from zero: ``level - zero``."""
    low, high = (
        _spread([float(bound - z) for z in grid.zero_point], grid, x.ndim) if any(grid.zero_point) else float(bound)
        for bound in grid.bounds
    )
    scaled = x * _spread(_inverse(grid), grid, x.ndim)
    return nearest_even(jnp.minimum(jnp.maximum(scaled, low), high))


def _dequantize(codes: Array, grid: Grid) -> Array:
    steps = codes.astype(jnp.float32)
    if any(grid.zero_point):
        steps = steps - _spread([float(z) for z in grid.zero_point], grid, codes.ndim)
    return rounded_product(steps, _spread(grid.scale, grid, codes.ndim))


def _fake_quant(x: Array, grid: Grid) -> Array:
    return rounded_product(_steps(x, grid), _spread(grid.scale, grid, x.ndim))


def _quantize(x: Array, grid: Grid) -> Array:
    levels = _steps(x, grid)
    if any(grid.zero_point):
        levels = levels + _spread([float(z) for z in grid.zero_point], grid, x.ndim)
    return levels.astype(storage_dtype(grid.dtype))


def _primitive(word: str, decomposition: Any, result: Any) -> Primitive:
    primitive = Primitive(f"quant_{word}")

    def attributes(grid: Grid) -> dict[str, Any]:
        by_name = {
            "dtype": grid.dtype,
            "scale": np.asarray(grid.scale, np.float32),
            "zero_point": np.asarray(grid.zero_point, np.int64),
            "narrow_range": grid.narrow,
        }
        return by_name if grid.axis is None else {**by_name, "quantization_dimension": np.int32(grid.axis)}

    def composite(x: Array, **params: Any) -> Array:
        grid = Grid(**params)

        def decomposed(x: Array, **attributes: Any) -> Array:
            del attributes  # those of the composite, for compilers
            return decomposition(x, grid)

        return lax.composite(decomposed, name=f"quant.{word}")(x, **attributes(grid))

    primitive.def_impl(lambda x, **params: jax.jit(lambda x: decomposition(x, Grid(**params)))(x))
    primitive.def_abstract_eval(lambda x, **params: ShapedArray(x.shape, result(Grid(**params))))
    mlir.register_lowering(primitive, mlir.lower_fun(composite, multiple_results=False))
    return primitive


dequantize_p = _primitive("dequantize", _dequantize, lambda grid: jnp.dtype(jnp.float32))
fake_quant_p = _primitive("fake_quant", _fake_quant, lambda grid: jnp.dtype(jnp.float32))
quantize_p = _primitive("quantize", _quantize, lambda grid: storage_dtype(grid.dtype))

PRIMITIVES = (dequantize_p, fake_quant_p, quantize_p)
"""The three, for whoever reads a jaxpr."""

NAMES = frozenset(primitive.name for primitive in PRIMITIVES)
"""Their names: ``quant_dequantize``, ``quant_fake_quant``, ``quant_quantize``."""
