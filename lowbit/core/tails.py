"""What a sample misses: the few values at the ends of an operand's range, kept as they are.

A value that is one of a hundred thousand is in no sample of sixteen thousand, and yet it can be what a network computes with: the massive
activations of transformers are one channel of one token (Sun, Chen, Kolter, Liu, Massive Activations in Large Language Models,
2024, https://arxiv.org/abs/2402.17762). A rule that weighs errors must count them: the ends are summed exactly, the sample stands for
the values between them (a stratified estimate).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Shaped

from .spec import Operand
from .statistics import State, Statistic


@dataclasses.dataclass(frozen=True)
class Ends(Statistic):
    """The largest and the smallest values of all batches, and how many values there were.

    Attributes:
        size: values kept at each end.
    """

    size: int = 512

    name = "ends"

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")

    def init(self, operand: Operand) -> State:
        """Returns the state: the largest values, the smallest with their sign changed, and a count (float32)."""
        none = jnp.full((self.size,), -jnp.inf, jnp.float32)
        return none, none, jnp.zeros((), jnp.float32)

    def update(self, state: State, x: Shaped[Array, "..."], operand: Operand, *, beside: Array | None = None) -> State:
        if x.size == 0:
            return state
        high, low, count = state
        flat = x.astype(jnp.float32).reshape(-1)
        few = min(self.size, flat.size)
        return (
            self._largest(high, lax.top_k(flat, few)[0]),
            self._largest(low, lax.top_k(-flat, few)[0]),
            count + flat.size,
        )

    def merge(self, state: State, other: State) -> State:
        return self._largest(state[0], other[0]), self._largest(state[1], other[1]), state[2] + other[2]

    def across(self, state: State, axis_names: tuple[str, ...]) -> State:
        high, low, count = state
        ends = (lax.all_gather(end, axis_names, tiled=False).reshape(-1) for end in (high, low))
        high, low = (lax.top_k(end, self.size)[0] for end in ends)
        return high, low, lax.psum(count, axis_names)

    def _largest(self, a: Array, b: Array) -> Array:
        return lax.top_k(jnp.concatenate([a, b]), self.size)[0]

    def finish(self, state: State) -> Any:
        """Returns the largest values, the smallest, both outermost first, and the number of values."""
        high, low, count = state
        return high, -low, count


def drawn(stats: Mapping[str, Any]) -> tuple[Float[Array, " values"], Float[Array, " values"] | None]:
    """Returns values that stand for all that were seen, and how many each stands for.

    Args:
        stats: finished statistics: ``sample``, and ``ends`` or not.

    Returns:
        The sample and None, where there are no ends: each then stands for as many. Else the sample, the largest and the
        smallest values: those at the ends for themselves, those of the sample that lie between them for the rest.
    """
    sample = stats["sample"].reshape(-1)
    if "ends" not in stats:
        return sample, None
    high, low, count = stats["ends"]
    kept = jnp.arange(high.size, dtype=jnp.float32)
    # Where there are fewer values than places, the smallest are among the largest, and count once.
    are_high = (kept < count).astype(jnp.float32)
    are_low = (kept < count - high.size).astype(jnp.float32)
    rest = jnp.maximum(count - 2 * high.size, 0.0)
    # Values equal to the last that was kept are among the rest as well: a clip, or a relu, makes many of one value.
    between = (sample <= high[-1]) & (sample >= low[-1])
    between = (between | ~jnp.any(between)).astype(jnp.float32)
    share = rest * (1.0 / jnp.sum(between))
    values = jnp.concatenate([sample, jnp.where(are_high > 0, high, 0.0), jnp.where(are_low > 0, low, 0.0)])
    return values, jnp.concatenate([between * share, are_high, are_low])
