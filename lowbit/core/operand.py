"""What a quantizer may know about the array it gets: everything but its values."""

import dataclasses

import jax
from jaxtyping import Array

from .blocks import Dim


@dataclasses.dataclass(frozen=True)
class Operand:
    """What a quantizer may know about the array it gets: everything but its values.

    Attributes:
        shape: the shape, of the leaf for weights.
        dtype: the dtype name the operand is computed in, such as ``"float32"``.
        contract: the contracted axes, in leaf order. Groups lie within the last of them.
        stack: how many leading axes count layers of a scan; they never share a scale.
        is_weight: whether the operand is a weight.
    """

    shape: tuple[Dim, ...]
    dtype: str = "float32"
    contract: tuple[int, ...] = ()
    stack: int = 0
    is_weight: bool = True


def shape_of(x: Array | jax.ShapeDtypeStruct) -> Operand:
    """Returns an `Operand` that knows only shape and dtype."""
    return Operand(tuple(x.shape), str(x.dtype))
