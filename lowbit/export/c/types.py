"""How integers of every width are written in C."""

from typing import Any

import jax.numpy as jnp
import numpy as np


def bits(dtype: Any) -> int:
    """Returns the bits of an integer or boolean dtype; 1 of booleans.

    Example:
        >>> bits(jnp.int4), bits(jnp.uint8), bits(bool)
        (4, 8, 1)
    """
    return 1 if jnp.dtype(dtype) == np.bool_ else jnp.iinfo(dtype).bits


def is_signed(dtype: Any) -> bool:
    """Returns whether a dtype has negative numbers."""
    return jnp.dtype(dtype) != np.bool_ and jnp.iinfo(dtype).min < 0


def limits(dtype: Any) -> tuple[int, int]:
    """Returns the smallest and the largest number."""
    return (0, 1) if jnp.dtype(dtype) == np.bool_ else (int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max))


def storage_bits(dtype: Any) -> int:
    """Returns the bits of a variable that holds one element: 8, 16, 32 or 64."""
    return max(8, bits(dtype))


def suffix(dtype: Any) -> str:
    """Returns the short name: ``i8``, ``u32``; that of a byte for narrower ones."""
    return f"{'i' if is_signed(dtype) else 'u'}{storage_bits(dtype)}"


def c_type(dtype: Any) -> str:
    """Returns the C type of one element.

    Example:
        >>> c_type(jnp.int32), c_type(bool), c_type(jnp.int4)
        ('int32_t', 'uint8_t', 'int8_t')
    """
    return f"{'' if is_signed(dtype) else 'u'}int{storage_bits(dtype)}_t"


def literal(value: int, dtype: Any) -> str:
    """Returns a number in C.

    Example:
        >>> literal(-(2**31), jnp.int32), literal(7, jnp.uint32)
        ('INT32_MIN', '7u')
    """
    if not is_signed(dtype):
        return f"UINT64_C({value})" if bits(dtype) == 64 else (f"{value}u" if bits(dtype) == 32 else str(value))
    if bits(dtype) >= 32 and value == limits(dtype)[0]:
        return f"INT{bits(dtype)}_MIN"
    return f"INT64_C({value})" if bits(dtype) == 64 else str(value)


def narrowest(low: int, high: int) -> Any:
    """Returns the narrowest dtype of 2, 4, 8, 16, 32 or 64 bits that holds a range, signed where both do."""
    for dtype in (jnp.int2, jnp.int4, jnp.int8, jnp.uint8, jnp.int16, jnp.uint16, jnp.int32, jnp.uint32, jnp.int64):
        least, most = limits(dtype)
        if least <= low and high <= most:
            return jnp.dtype(dtype)
    return jnp.dtype(jnp.uint64)
