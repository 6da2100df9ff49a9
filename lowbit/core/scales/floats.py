"""Scales in 16 bits: ``bfloat16`` and ``float16``, rounded to nearest, ties to even."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowbit.core.gradients import straight_through
from lowbit.core.operand import Operand
from lowbit.core.rounding import cast_once
from lowbit.core.storage import LARGEST_SCALE, Numbers, Storage

WORDS = ("bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Half(Storage):
    """A float of 16 bits.

    Attributes:
        word: the name of its dtype.
    """

    word: str

    @property
    def name(self) -> str:
        return self.word

    @property
    def bits(self) -> float:
        return 16.0

    @property
    def dtype(self) -> str | None:
        return self.word

    @property
    def smallest(self) -> float:
        return 2.0**-24 if self.word == "float16" else 0.0  # bfloat16 has float32's exponents

    @property
    def largest(self) -> float:
        return 65504.0 if self.word == "float16" else LARGEST_SCALE

    def stored(
        self, scale: Float[Array, "..."], operand: Operand | None, outer: Float[Array, "..."] | None = None
    ) -> Float[Array, "..."]:
        return straight_through(scale, cast_once(scale, self.word).astype(jnp.float32))


def named(word: str, numbers: Numbers) -> Half | None:
    """Returns the storage of this name, or None."""
    return Half(word) if word in WORDS else None
