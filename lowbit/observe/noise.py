"""Statistics of what quantization does to an operand: how far it moves values, and how many it clips."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Shaped

from lowbit.core.spec import Operand
from lowbit.core.statistics import Total


@dataclasses.dataclass(frozen=True)
class Noise(Total):
    """Sums of squares: of the float values, and of how far the quantized ones are from them."""

    name = "noise"
    is_of_product = True
    is_exact = False
    beside = "float"

    def init(self, operand: Operand) -> Any:
        return jnp.zeros((2,), jnp.float32)

    def update(self, state: Any, x: Shaped[Array, "..."], operand: Operand, *, beside: Array | None = None) -> Any:
        assert beside is not None
        right, wrong = beside.astype(jnp.float32), x.astype(jnp.float32)
        return state + jnp.stack([jnp.sum(jnp.square(right)), jnp.sum(jnp.square(right - wrong))])


@dataclasses.dataclass(frozen=True)
class Beyond(Total):
    """How many values lie beyond the ends of a grid by more than half a step, and how many there are."""

    name = "beyond"
    beside = "ends"

    def init(self, operand: Operand) -> Any:
        return jnp.zeros((2,), jnp.float32)

    def update(self, state: Any, x: Shaped[Array, "..."], operand: Operand, *, beside: Array | None = None) -> Any:
        assert beside is not None
        wide = x.astype(jnp.float32)
        outside = (wide < beside[0]) | (wide > beside[1])
        return state + jnp.stack([jnp.sum(outside.astype(jnp.float32)), jnp.float32(x.size)])
