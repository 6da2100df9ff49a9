"""What a stored scale is: the protocol of `lowbit.core.scales`, and the plain float32.

A file in `lowbit.core.scales` with ``WORDS`` and a function ``named`` is a storage, or several, and is found: rule texts
take its words, and `QTensor`, files, plans and kernels read everything they need of it from the object.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from .granularity import Granularity
from .operand import Operand

if TYPE_CHECKING:
    from .qtensor import QTensor
    from .spec import Format, Spec

LARGEST_SCALE = 2.0**126
"""Scales are not larger than this, so that ``1 / scale`` is a normal float32."""

Numbers = Callable[[str], "Format"]
"""From the name of a number format to the format: what ``named(word, numbers)`` of a storage's module gets."""


@dataclasses.dataclass(frozen=True)
class Storage(abc.ABC):
    """How a scale is stored. Subclasses are final, frozen dataclasses, one file each.

    ``stored`` rounds a scale to what its storage holds, in float32 and differentiably: that is part of the grid, in
    training too. `encoded` gives the rounded scale the dtype it is stored in, exactly.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The option of the rule text: ``bfloat16``, ``e8m0``, ``int5``."""

    @property
    @abc.abstractmethod
    def bits(self) -> float:
        """Stored bits per scale; what scales *them* is left out."""

    @property
    def signs(self) -> Literal["never", "either", "always"]:
        """Whether it holds negative scales: never, where a spec asks for them, or always."""
        return "either"

    @property
    def dtype(self) -> str | None:
        """The dtype of the stored array; None where the scales are themselves a `QTensor`."""
        return None

    @property
    def spec(self) -> "Spec | None":
        """How the scales are themselves quantized, or None."""
        return None

    @property
    def smallest(self) -> float:
        """The smallest magnitude it holds, or 0 where that is float32's."""
        return 0.0

    @property
    def largest(self) -> float:
        """The largest magnitude it holds."""
        return LARGEST_SCALE

    def check(self, numbers: "Format", granularity: Granularity) -> None:
        """Raises ValueError where scales of such levels and blocks cannot be stored so."""
        return

    def of_reach(self, reach: Float[Array, "..."], numbers: "Format", rule: str) -> Float[Array, "..."]:
        """Returns the scale on which a magnitude is the largest level of ``numbers``; 0 where the magnitude is.

        Args:
            reach: non-negative magnitudes; negative ones, where scales have signs, give negative scales.
            numbers: the format.
            rule: how powers of two are found, one of `lowbit.core.powers.SCALE_RULES`; other storages do not read it.
        """
        return reach * np.float32(1.0 / numbers.reach)

    def outer(self, scale: Float[Array, "..."], operand: Operand | None) -> Float[Array, "..."] | None:
        """Returns the second level of scales: what ``scale`` is divided by before it is stored; None where there is none.

        Args:
            scale: float32 of the scale's shape.
            operand: what the scale belongs to.
        """
        return None

    @abc.abstractmethod
    def stored(
        self, scale: Float[Array, "..."], operand: Operand | None, outer: Float[Array, "..."] | None = None
    ) -> "Float[Array, '...'] | QTensor":
        """Returns ``scale`` as it will be stored; the gradient passes straight through.

        Args:
            scale: float32 of the scale's shape, within `smallest` and `largest` in magnitude.
            operand: what the scale belongs to; None where it is not known, which some storages refuse.
            outer: the second level, in place of `outer` of these scales.
        """

    def encoded(self, scale: Any) -> "Shaped[Array, '...'] | QTensor":
        """Returns a scale that `stored` made in the dtype it is stored in, a `QTensor` with codes; exact."""
        if not hasattr(scale, "astype"):  # a QTensor
            return scale.encode()
        return scale.astype(jnp.float32 if self.dtype is None else jnp.dtype(self.dtype))

    def merged_spec(self, spec: "Spec") -> "Spec":
        """Returns the spec of what `merged` returns."""
        return spec

    def merged(self, q: "QTensor") -> "QTensor":
        """Returns the same values with as much of the scale as is integer multiplied into the levels; others as they are."""
        return q

    def factors(self, q: "QTensor") -> tuple[Any, Any] | None:
        """Returns what a kernel of integer group scales is given: int8 factors and the scale of `merged`; None of others.

        Args:
            q: codes or packed.
        """
        return None


@dataclasses.dataclass(frozen=True)
class Plain(Storage):
    """The float32 as it is."""

    @property
    def name(self) -> str:
        return "float32"

    @property
    def bits(self) -> float:
        return 32.0

    @property
    def dtype(self) -> str | None:
        return "float32"

    def stored(
        self, scale: Float[Array, "..."], operand: Operand | None, outer: Float[Array, "..."] | None = None
    ) -> Float[Array, "..."]:
        return scale
