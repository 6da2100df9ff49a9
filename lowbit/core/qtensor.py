"""`QTensor`: the narrow waist. Everything left of it makes one, everything right of it eats one."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from lowbit_kernels import unpack_codes

from . import blocks as block_ops
from .blocks import Dim
from .rounding import cast_once, rounded_product, widened
from .spec import Spec

Nearest = Callable[[Array, "Array | float", "Array | float"], Array]
"""``(scaled x, low, high) -> levels``: what `lowbit.core.spec.Format.nearest` is."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QTensor:
    """A quantized array: codes, scale and, where affine, an integer zero point.

    The value is ``(level - zero) * scale``, computed in float32 and cast once to ``dtype``.

    The same class carries three stages of one array, told apart by ``stage``:

    * ``"levels"``: float32 levels, differentiable: what simulation computes with;
    * ``"codes"``: one integer per element: what an integer operation computes with;
    * ``"packed"``: uint8, several codes per byte along ``packed_axis``: what is stored.

    Axes are counted from the end in the static fields, so that slicing a leading axis (a scan over stacked layers,
    `jax.vmap`) leaves them true.

    Attributes:
        codes: levels, codes or packed bytes, of the array's shape (packed: shorter along ``packed_axis``).
        scale: float array of the scale's shape, same rank as ``codes``; or a `QTensor` (double quantization).
        zero: integer-valued float32 levels of the scale's shape, or None.
        spec: the static description.
        dtype: the name of the dtype of the value.
        groups: ``(axis from the end, elements per scale)`` of every axis with more than one but not all per scale.
        stage: ``levels``, ``codes`` or ``packed``.
        packed_axis: ``(axis from the end, length)`` where packed, else None.
    """

    # `Any`: as a pytree it also holds what `jax.tree.map` and `jax.eval_shape` put in place of arrays.
    codes: "Shaped[Array, '...'] | Any"
    scale: "Shaped[Array, '...'] | QTensor | Any"
    zero: "Shaped[Array, '...'] | Any | None"
    spec: Spec = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})
    groups: tuple[tuple[int, int], ...] = dataclasses.field(default=(), metadata={"static": True})
    stage: str = dataclasses.field(default="levels", metadata={"static": True})
    packed_axis: tuple[int, int] | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The logical shape, whatever the stage."""
        shape = list(self.codes.shape)
        if self.packed_axis is not None:
            axis, length = self.packed_axis
            shape[axis] = length
        return tuple(shape)

    @property
    def ndim(self) -> int:
        """The rank of the logical shape."""
        return len(self.shape)

    @property
    def blocks(self) -> tuple[Dim, ...]:
        """Elements per scale along every axis."""
        groups = dict(self.groups)
        rank = self.ndim
        scale = self.scale_values.shape
        return tuple(groups.get(i - rank, n if scale[i] == 1 else 1) for i, n in enumerate(self.shape))

    @property
    def scale_values(self) -> Float[Array, "..."]:
        """The scale in float32."""
        scale = self.scale.dequantize() if isinstance(self.scale, QTensor) else self.scale
        return scale.astype(jnp.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays it holds: once packed, what is stored; before, a byte or four per code."""
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self))

    @property
    def bits_per_element(self) -> float:
        """Stored bits per element, scales and zero points included."""
        return 8 * self.nbytes / max(math.prod(self.shape), 1)

    def levels(self) -> Float[Array, "..."]:
        """Returns the levels in float32, zero point still in them, whatever the stage."""
        return self.codes if self.stage == "levels" else self.spec.format.decode(self.unpacked_codes())

    def unpacked_codes(self) -> Shaped[Array, "..."]:
        """Returns the integer codes, one per element: what an encoded tensor holds, read out of the bytes of a packed one.

        Raises:
            ValueError: in the stage ``levels``; `encode` comes first.
        """
        if self.stage == "levels":
            raise ValueError("this QTensor holds levels: call encode() first")
        if self.packed_axis is None:
            return self.codes
        axis, length = self.packed_axis
        numbers = self.spec.format
        codes = unpack_codes(self.codes, numbers.bits, length, axis, numbers.is_signed)
        return codes.astype(jnp.int8 if numbers.is_signed else jnp.uint8)

    def centered(self) -> Float[Array, "..."]:
        """Returns ``level - zero`` in float32: integers, exactly, for integer formats."""
        levels = self.levels()
        if self.zero is None:
            return levels
        return self._blockwise(levels, self.zero.astype(jnp.float32), lambda x, z: x - z)

    def merged(self) -> "QTensor":
        """Returns the same values with the integers among its scales multiplied into the levels; others as they are.

        ``(level * integer of its group) * float of its channel``, the first product an integer of 8 bits: what operations
        on integer group scales compute with, see `lowbit.core.scales.integer`.
        """
        return self.spec.scale.merged(self)

    def dequantize(self) -> Float[Array, "..."]:
        """Returns the value in ``dtype``: ``(level - zero) * scale`` in float32, one cast at the end."""
        whole = self.merged()
        value = whole._blockwise(whole.centered(), whole.scale_values, rounded_product)
        return cast_once(value, self.dtype)

    def encode(self) -> "QTensor":
        """Returns the same tensor with integer codes: an exact cast of its levels, and of its scale.

        The scale gets the dtype it is stored in: it was rounded to it when the levels were made. NaN has no code in
        an integer format and becomes that of zero; a NaN scale keeps the value NaN.
        """
        if self.stage != "levels":
            return self
        zero = self.zero if self.zero is None else zero_dtype(self.zero, self.spec)
        levels = self.codes
        if self.spec.format.is_integer:
            nothing = jnp.zeros((), jnp.float32) if self.zero is None else self.zero
            levels = self._blockwise(levels, nothing, lambda x, z: jnp.where(jnp.isnan(x), z, x))
        codes = self.spec.format.encode(levels)
        return dataclasses.replace(
            self, codes=codes, scale=self.spec.scale.encoded(self.scale), zero=zero, stage="codes"
        )

    def _blockwise(self, x, scale, function):
        blocks = self.blocks
        if scale.ndim == 0 or all(b == 1 or b == n for b, n in zip(blocks, self.shape, strict=True)):
            return function(x, scale)
        cut = function(block_ops.split(x, blocks), block_ops.spread(scale, self.shape, blocks))
        return block_ops.join(cut, self.shape, blocks)


def zero_dtype(zero: Shaped[Array, "..."], spec: Spec) -> Shaped[Array, "..."]:
    """Returns ``zero`` in the integer dtype it is stored in: that of the codes."""
    narrow, wide = (jnp.int8, jnp.int16) if spec.format.is_signed else (jnp.uint8, jnp.uint16)
    return zero.astype(wide if spec.format.bits > 8 else narrow)


def static_groups(shape: tuple[Dim, ...], blocks: tuple[Dim, ...]) -> tuple[tuple[int, int], ...]:
    """Returns the ``groups`` field of a `QTensor` of ``shape`` cut into ``blocks``."""
    rank = len(shape)
    return tuple((i - rank, b) for i, (n, b) in enumerate(zip(shape, blocks, strict=True)) if block_ops.is_split(n, b))


def _check_table(name: str, table: Array, shape: tuple[Dim, ...], blocks: tuple[Dim, ...]) -> None:
    """Raises ValueError where a grid's scale or zero, which may come from a state that was cast or cut, cannot be one."""
    is_there = table.ndim == len(shape) == len(blocks)
    wanted = block_ops.scale_shape(shape, blocks) if len(shape) == len(blocks) else blocks
    pairs = zip(table.shape, wanted, strict=True) if is_there else ()
    is_there = is_there and all(n == 1 or n == w for n, w in pairs)
    if not is_there or not jnp.issubdtype(table.dtype, jnp.floating):
        raise ValueError(
            f"the {name} of values of shape {tuple(shape)} in blocks of {tuple(blocks)} must be floats of shape {tuple(wanted)}, got "
            f"{table.dtype} of shape {table.shape}: a state that was cast or reshaped, or of another operand"
        )


def quantize_with(
    x: Float[Array, "..."],
    spec: Spec,
    scale: Float[Array, "..."] | QTensor,
    zero: Float[Array, "..."] | None,
    blocks: tuple[Dim, ...],
    *,
    nearest: Nearest | None = None,
) -> QTensor:
    """Returns ``x`` on the grid of ``scale`` and ``zero``: levels in float32, differentiable in all three.

    ``level = nearest(clip(x * (1 / scale), low - zero, high - zero)) + zero``, all in float32 whatever the dtype of
    ``x``; the integer zero is added after rounding (Krishnamoorthi, 2018, arXiv 1806.08342, Eq. 1). Scales are floored
    at 2**-126. NaN stays NaN; infinities saturate.

    Args:
        x: float array.
        spec: the static description.
        scale: float32, of the scale's shape, positive unless the spec has signed scales; or a `QTensor` of them (see
            `lowbit.core.scales.stored_scale`).
        zero: integer-valued float32 of the scale's shape, or None.
        blocks: elements per scale along every axis.
        nearest: ``(scaled x, low, high) -> levels``, in place of ``spec.format.nearest``: another rounding or another
            gradient. Its values must be levels of the format.

    Raises:
        ValueError: for a scale or zero that holds no floats, or does not have that shape.
    """
    wide = widened(x)
    nearest = spec.format.nearest if nearest is None else nearest
    values = scale.dequantize() if isinstance(scale, QTensor) else scale
    for name, table in (("scale", values), ("zero", zero)):
        if table is not None:
            _check_table(name, table, x.shape, blocks)
    inverse = 1.0 / values.astype(jnp.float32)
    cut = block_ops.split(wide, blocks) * block_ops.spread(inverse, x.shape, blocks)
    low, high = spec.format.low, spec.format.high
    if zero is None:
        levels = nearest(cut, low, high)
    else:
        shift = block_ops.spread(zero.astype(jnp.float32), x.shape, blocks)
        levels = nearest(cut, low - shift, high - shift) + shift
    return QTensor(
        codes=block_ops.join(levels, x.shape, blocks),
        scale=scale,
        zero=zero,
        spec=spec,
        dtype=str(x.dtype),
        groups=static_groups(tuple(x.shape), tuple(blocks)),
    )
