"""One matmul or convolution without its equation: hashable, so that operations alike are traced once."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from lowbit.program.eqn import Eqn


@dataclasses.dataclass(frozen=True)
class Matmul:
    """A dot_general or convolution: the primitive and its parameters, hashable, without the equation.

    Attributes:
        primitive: the jax primitive.
        params: its parameters, as sorted items.
    """

    primitive: Any
    params: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, eqn: Eqn) -> "Matmul":
        params = {**eqn.params, "out_sharding": None} if "out_sharding" in eqn.params else eqn.params
        return cls(eqn.primitive, tuple(sorted(params.items(), key=lambda item: item[0])))

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.primitive.name

    def bind(self, lhs: Array, rhs: Array, **changes: Any) -> Array:
        """Returns the primitive's result, some parameters changed."""
        return self.primitive.bind(lhs, rhs, **{**dict(self.params), **changes})

    def accumulate_in(self, lhs: Array, rhs: Array, dtype: DTypeLike, **changes: Any) -> Array:
        """Returns the primitive's result accumulated in ``dtype``, at the highest precision."""
        changes.setdefault("precision", (lax.Precision.HIGHEST, lax.Precision.HIGHEST))
        return self.bind(lhs, rhs, preferred_element_type=jnp.dtype(dtype), **changes)
