"""Rows of narrow integers that end within a byte, as bytes that the program takes apart.

IREE 3.13 rejects a constant whose elements fill no whole number of bytes (3 x 3 x 7 x 13 in 4 bits), and loads of rows that
end within one: with masks, it has no code for most of them; without, it reads some wrong, and says nothing. Bytes and shifts
are right everywhere, and take as little.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def has_ragged_rows(shape: Sequence[int], bits: int) -> bool:
    """Returns whether rows of integers of 2 or 4 bits end within a byte.

    Example:
        >>> has_ragged_rows((64, 9), 4), has_ragged_rows((64, 10), 4), has_ragged_rows((64, 9), 8)
        (True, False, False)
    """
    return bits < 8 and len(shape) > 0 and shape[-1] * bits % 8 != 0


def packed(codes: np.ndarray) -> np.ndarray:
    """Returns integers of 2 or 4 bits as bytes, int8 or uint8 as they have a sign: the first in the lowest bits.

    Example:
        >>> packed(np.array([-8, 7, 1], jnp.int4)).view(np.uint8).tolist()
        [120, 1]
    """
    info = jnp.iinfo(codes.dtype)
    each = 8 // info.bits
    flat = codes.astype(np.int8).ravel()
    rows = np.pad(flat, (0, -len(flat) % each)).reshape(-1, each).view(np.uint8) & np.uint8(2**info.bits - 1)
    together = np.bitwise_or.reduce(rows << (np.arange(each, dtype=np.uint8) * np.uint8(info.bits)), axis=1)
    return together.view(np.int8) if info.min < 0 else together


def unpacked(stored: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Returns the integers that `packed` made of a ``dtype``, in bytes of their own, in a program.

    Args:
        stored: bytes.
        shape: of the integers.
        dtype: int2, uint2, int4 or uint4.
    """
    info = jnp.iinfo(dtype)
    right = lax.shift_right_arithmetic if info.min < 0 else lax.shift_right_logical
    top = 8 - info.bits
    parts = [
        right(lax.shift_left(stored, jnp.full_like(stored, top - at)), jnp.full_like(stored, top))
        for at in range(0, 8, info.bits)
    ]
    flat = jnp.stack(parts, axis=1).reshape(-1)
    return lax.slice(flat, (0,), (int(np.prod(shape)),)).reshape(shape)
