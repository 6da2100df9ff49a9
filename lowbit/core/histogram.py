"""How often values fall where: counts by the leading bits of float32, the same in any order of batches."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped

from .spec import Operand
from .statistics import State, Total

_BITS = 12
"""Sign, exponent and three bits of mantissa: bins an eighth of an octave wide, whatever the range."""


@dataclasses.dataclass(frozen=True)
class Histogram(Total):
    """Counts of values in bins that never move: a bin is the sign, the exponent and three bits of mantissa of float32.

    Finished, ``{"low", "counts"}``: the smallest magnitude of every bin with the sign of its values, ascending (float32
    ``[bins]``; infinity and NaN at the ends), and how many values there were (uint32 ``[bins]``, at most 2**32 - 1 each).
    """

    name = "histogram"

    def init(self, operand: Operand) -> State:
        return jnp.zeros(2**_BITS, jnp.uint32)

    def update(self, state: State, x: Shaped[Array, "..."], operand: Operand, *, beside: Array | None = None) -> State:
        bits = lax.bitcast_convert_type(x.astype(jnp.float32).reshape(-1), jnp.uint32)
        return state.at[bits >> (32 - _BITS)].add(jnp.uint32(1))

    def finish(self, state: State) -> dict[str, Array]:
        half = 2 ** (_BITS - 1)
        order = np.concatenate([np.arange(2 * half - 1, half - 1, -1), np.arange(half)])
        low = (order.astype(np.uint32) << (32 - _BITS)).view(np.float32)
        return {"low": jnp.asarray(low), "counts": state[order]}
