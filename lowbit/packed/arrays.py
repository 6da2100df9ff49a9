"""One array, quantized: the numerics without a model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowbit.core.checks import not_finite
from lowbit.core.qtensor import QTensor
from lowbit.core.quantizer import Quantizer, Quantizers
from lowbit.core.spec import Operand
from lowbit.formats.lookup import spec_from_text
from lowbit.quantizers.rtn import RTN

from .bits import pack


def quantize_array(
    x: Float[Array, "..."],
    how: "str | Quantizer | Quantizers",
    *,
    axis: int = -1,
    packed: bool = True,
    key: Array | None = None,
) -> QTensor:
    """Returns ``x`` as a `QTensor`: packed codes and scales, a few bits per element.

    Computed in float32; `QTensor.dequantize` gives back the dtype of ``x``. Works under `jax.jit` and `jax.vmap`, and
    compiles once per shape, dtype and quantizer.

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
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be a float array, got {x.dtype}; cast it first")
    if x.ndim == 0 or not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis must be within the rank of x, got axis {axis} for shape {x.shape}")
    if not_finite({"x": x}):
        where = np.argwhere(~np.isfinite(np.asarray(x).astype(np.float32)))
        raise ValueError(
            f"x holds NaN or infinity, {len(where)} of {x.size} values, first at {tuple(where[0].tolist())}: it has no grid; "
            f"mend it first, for instance by jnp.nan_to_num"
        )
    quantizer = _quantizer(how)
    key = jax.random.key(0) if key is None else key
    return _quantized(x, key, quantizer, axis % x.ndim, packed=packed)


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


@functools.partial(jax.jit, static_argnames=("quantizer", "axis", "packed"))
def _quantized(x: Array, key: Array, quantizer: Quantizer, axis: int, *, packed: bool) -> QTensor:
    operand = Operand(tuple(x.shape), str(x.dtype), contract=(axis,))
    state = quantizer.init(operand, {"values": x}, key)
    q = quantizer.encode(state, x, operand)
    return pack(q, contract=(axis,)) if packed else q
