"""Many small arrays in one buffer, of which native calls are told where theirs lie.

Every buffer of a jitted call costs a microsecond or so, whatever its size: a network of 60 narrow layers has 300 of them, and
spent more on those than on its products. A native call reads an operand that is placed in an arena where it lies;
whatever else reads it takes a slice.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from lowbit_kernels.cpu import library

TYPES = (
    "float32",
    "bfloat16",
    "int8",
    "uint8",
    "int16",
    "int32",
)  # numbers shared with enum Type in cpp/core/problem.h
ALIGNMENT = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """An array inside a larger one. No pytree: trees hold it as a leaf, and jax sees its arena alone.

    Attributes:
        arena: uint8 `(bytes,)`.
        offset: its first byte, a multiple of 64.
        shape: of the array.
        dtype: of the array, one of `TYPES`.
    """

    arena: Any
    offset: int
    shape: tuple[int, ...]
    dtype: Any

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)

    def reshape(self, *shape: Any) -> "Placed":
        """Returns the same elements in another shape: of integers, or one tuple of them, at most one -1."""
        whole = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        return dataclasses.replace(self, shape=np.broadcast_to(np.int8(0), self.shape).reshape(whole).shape)

    def array(self) -> Array:
        """Returns a slice of the arena."""
        width = self.dtype.itemsize
        data = lax.slice(self.arena, (self.offset,), (self.offset + self.size * width,))
        data = data.reshape(*self.shape, width) if width > 1 else data.reshape(self.shape)
        return data if self.dtype == jnp.uint8 else lax.bitcast_convert_type(data, self.dtype)

    def __jax_array__(self) -> Array:
        return self.array()


def place(arrays: Sequence[Any]) -> tuple[np.ndarray, list[int]]:
    """Returns the bytes of concrete arrays, each from a multiple of 64 on, and where each begins."""
    sizes = [-(-x.nbytes // ALIGNMENT) * ALIGNMENT for x in arrays]
    offsets = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
    arena = np.zeros(offsets.pop(), np.uint8)
    for x, at in zip(arrays, offsets, strict=True):
        arena[at : at + x.nbytes] = np.asarray(x).reshape(-1).view(np.uint8)
    return arena, offsets


def array_of(x: Any) -> Any:
    """Returns the array, where `x` is a placed one; else `x`."""
    return x.array() if isinstance(x, Placed) else x


def reshaped(x: Any, shape: tuple[int, ...]) -> Any:
    """Returns an array, or a placed one, in another shape."""
    return x.reshape(shape) if isinstance(x, Placed) else jnp.reshape(x, shape)


def is_placeable(x: Any, most: int) -> bool:
    """Whether a concrete array may be placed: at most so many bytes, on one device, of a type that native calls read."""
    return (
        isinstance(x, jax.Array)
        and library.reads_arena()
        and 0 < x.nbytes <= most
        and x.dtype.name in TYPES
        and isinstance(x.sharding, jax.sharding.SingleDeviceSharding)
    )
