"""One array, quantized: the numerics without a model."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lowbit.core.checks import is_traced, not_finite
from lowbit.core.qtensor import QTensor
from lowbit.core.quantizer import Quantizer, Quantizers
from lowbit.core.ranges import Full
from lowbit.core.spec import Operand
from lowbit.formats.lookup import spec_from_text
from lowbit.plan.rows import Plan
from lowbit.quantizers.rtn import RTN

from . import arguments, pieces
from .bits import pack, packing_axis
from .pieces import count_of, joined
from .trees import QParams


def quantize_array(
    x: Float[Array, "..."] | Float[np.ndarray, "..."],
    how: "str | Quantizer | Quantizers",
    *,
    axis: int = -1,
    packed: bool = True,
    key: Array | None = None,
) -> QTensor:
    """Returns ``x`` as a `QTensor`: packed codes and scales, a few bits per element.

    Computed in float32; `QTensor.dequantize` gives back the dtype of ``x``. Works under `jax.jit` and `jax.vmap`, and
    compiles once per shape, dtype and quantizer. Rounded to nearest with a scale of its own per channel or group, a large
    array is taken a piece at a time: beside ``x`` and its codes, one piece of either is held; of a numpy array, no copy.

    Args:
        x: float array of rank 1 or more.
        how: the ``w`` part of a rule text without its letter (``"int4/g32"``, ``"mxfp6_e2m3"``, ``"nvfp4"``), rounded to
            nearest with the full range; or a quantizer; or the weight's of a pair of `Quantizers`.
        axis: the axis along which groups lie, and which a per-channel scale covers.
        packed: whether codes share bytes along the axis that pads least (`lowbit.packed.bits.pack`); else one integer
            code per element. `QTensor.dequantize` gives the same either way, `QTensor.nbytes` the bytes of the arrays.
        key: a typed key, for quantizers whose start is random.

    Returns:
        A `QTensor` of the shape of ``x``, in stage ``packed`` or ``codes``; 16-bit formats are never packed.

    Raises:
        TypeError: if ``x`` is not a float array, or ``how`` none of the above.
        ValueError: for an axis outside the rank, a text that is not one, pointing at the character, or an ``x`` with NaN or
            infinity. Under jit values are not looked at: NaN makes the scale of its block NaN, infinity counts as the largest
            finite number.

    Example:
        >>> q = quantize_array(jnp.array([[1.5, -2.0, 3.5, 0.1]]), "int4/g2")
        >>> q.unpacked_codes().tolist(), q.scale.shape, q.dequantize().shape
        ([[5, -7, 7, 0]], (1, 2), (1, 4))
        >>> q = quantize_array(jnp.ones((8, 64)), "nvfp4")  # 4 bits, 8 per 16 of scale, 32 for the tensor's
        >>> q.nbytes, q.bits_per_element
        (292, 4.5625)
    """
    arguments.check(packed=packed, key=key)
    if not isinstance(x, jax.Array | np.ndarray) and (x is None or isinstance(x, str | Plan | QParams)):
        raise TypeError(f"x must be a float array, got {type(x).__name__}")
    if type(axis) is not int:
        raise TypeError(f"axis must be an integer, got {axis!r}")
    try:
        x = x if isinstance(x, np.ndarray) else jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"x must be a float array, got {type(x).__name__}: {error}") from None
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be a float array, got {x.dtype}; cast it first")
    if x.ndim == 0 or not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis must be within the rank of x, got axis {axis} for shape {x.shape}")
    _check_finite(x)
    quantizer = _quantizer(how)
    key = jax.random.key(0) if key is None else key
    axis = axis % x.ndim
    if (along := _independent(x, quantizer, axis)) is not None and (
        count := count_of(x.size, x.shape[along], WHOLE_BYTES if along == _place(x, quantizer, axis) else 1)
    ) > 1:
        place = _place(x, quantizer, axis)
        size = x.shape[along] // count

        def piece(i: int) -> QTensor:
            part = _part(x, along, i * size, (i + 1) * size)
            return _quantized(part, key, quantizer, axis, packed=packed, place=place)

        q = joined(count, piece, along)
        return (
            dataclasses.replace(q, packed_axis=(place - x.ndim, x.shape[place]))
            if q.packed_axis and place is not None
            else q
        )
    return _quantized(jnp.asarray(x), key, quantizer, axis, packed=packed)


def _check_finite(x: Any) -> None:
    """Raises where an array with values holds NaN or infinity, looked at a piece at a time: nothing of its size is made."""
    if is_traced(x) or x.size == 0:
        return
    along = max(range(x.ndim), key=lambda i: x.shape[i])
    size = max(pieces.ELEMENTS * x.shape[along] // x.size, 1)
    count, first = 0, None
    for start in range(0, x.shape[along], size):
        with jax.ensure_compile_time_eval():  # an array that an outer jit closes over has values too
            part = _part(x, along, start, min(start + size, x.shape[along]))
        if not_finite({"x": part}):
            is_bad = ~np.isfinite(np.asarray(part).astype(np.float32))
            at = [int(i) for i in np.unravel_index(np.argmax(is_bad), is_bad.shape)]
            at[along] += start
            count, first = count + int(is_bad.sum()), min(first or at, at)
    if first is not None:
        raise ValueError(
            f"x holds NaN or infinity, {count} of {x.size} values, first at {tuple(first)}: it has no grid; mend it first, for "
            f"instance by jnp.nan_to_num"
        )


def _part(x: Any, along: int, start: int, stop: int) -> jax.Array:
    """A piece of an array along an axis; of numpy's only the piece is copied."""
    if (start, stop) == (0, x.shape[along]):
        return jnp.asarray(x)
    if isinstance(x, jax.Array):
        return lax.dynamic_slice_in_dim(x, start, stop - start, axis=along)  # compiled once, wherever it starts
    return jnp.asarray(x[(slice(None),) * along + (slice(start, stop),)])


WHOLE_BYTES = 8
"""Codes that fill whole bytes, whatever their bits."""


def _place(x: Any, quantizer: Quantizer, axis: int) -> int | None:
    """The axis along which codes share bytes; None where none do."""
    bits = quantizer.spec.format.bits
    return packing_axis(tuple(x.shape), bits, (axis,)) if bits <= 8 else None


def _independent(x: Any, quantizer: Quantizer, axis: int) -> int | None:
    """The longest axis along which nothing is shared, neither a scale nor a byte; None where there is none, or it is not known."""
    if is_traced(x) or not isinstance(quantizer, RTN) or quantizer.spec.scale.spec is not None:
        return None
    if not isinstance(quantizer.range, Full):  # sums may round otherwise in arrays of other shapes
        return None
    blocks = quantizer.spec.granularity.blocks(Operand(tuple(x.shape), str(x.dtype), contract=(axis,)))
    place = _place(x, quantizer, axis)
    axes = [i for i, block in enumerate(blocks) if block == 1 and (i != place or x.shape[i] % WHOLE_BYTES == 0)]
    return max(axes, key=lambda i: x.shape[i], default=None)


def _quantizer(how: Any) -> Quantizer:
    if isinstance(how, str):
        return RTN(spec_from_text(how, is_weight=True))
    if isinstance(how, Quantizers):
        if how.weight is None:
            raise ValueError("these Quantizers have no weight part")
        return how.weight
    if not isinstance(how, Quantizer):
        raise TypeError(f"how must be a rule text such as 'int4/g32' or a quantizer, got {type(how).__name__}")
    return how


@functools.partial(jax.jit, static_argnames=("quantizer", "axis", "packed", "place"))
def _quantized(
    x: Array, key: Array, quantizer: Quantizer, axis: int, *, packed: bool, place: int | None = None
) -> QTensor:
    operand = Operand(tuple(x.shape), str(x.dtype), contract=(axis,))
    state = quantizer.init(operand, {"values": x}, key)
    q = quantizer.encode(state, x, operand)
    return pack(q, contract=(axis,), axis=place) if packed else q
