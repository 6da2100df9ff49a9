"""Sums, maxima and minima of two tensors: both rescaled by one power of two, so that one rounding is left.

Of 16-bit codes the products are long; rounding keeps the order, so that a maximum is taken after it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Int32

from lowbit.core.powers import exponent, power_of_two
from lowbit.core.rounding import nearest_even, rounded_product
from lowbit.program.read import Equation

from . import compute
from .fixed import long_words
from .kind import Given, Kind, Taken
from .nodes import Details, Node
from .placer import Placer

_PAIR_BITS = 21


@dataclass(frozen=True, eq=False)
class Signed(Details):
    """What a sum knows.

    Attributes:
        sign: of its second operand: 1 or -1.
    """

    sign: int = 1


class Joined(Kind):
    """A sum, maximum or minimum of two tensors.

    Attributes:
        primitives: that are one.
    """

    after = ("affine",)
    joins = True
    primitives: ClassVar[tuple[str, ...]]
    join: ClassVar[Callable[[Array, Array], Array]]
    is_linear: ClassVar[bool] = False

    def takes(self, equation: Equation, placer: Placer) -> bool:
        return len(equation.ins) == 2 and equation.name in self.primitives

    def place(self, equation: Equation, placer: Placer, nodes: list[Node]) -> None:
        ins = [placer.need(v, nodes, equation) for v in equation.ins]
        equations = [equation]
        out, clips = placer.clipped(equation.outs[0], equation, equations)
        placer.done |= set(equations)
        details = Signed(-1 if equation.name == "sub" else 1)
        placer.add(nodes, self.name, ins, [out], equations, clips=clips, details=details)

    def constants(self, given: Given) -> dict[str, Array]:
        """Multipliers of two tensors by one power of two, so that the larger has 21 bits."""
        left, right = (rounded_product(scale, given.inverse) for scale, _ in given.grids)
        right = right * float(given.node.known_as(Signed).sign)
        k = jnp.clip(_PAIR_BITS - 1 - exponent(jnp.maximum(left, jnp.abs(right))), 1, 30)
        most = 2.0**_PAIR_BITS
        q = [jnp.clip(nearest_even(m * power_of_two(k)), -most, most).astype(jnp.int32) for m in (left, right)]
        return given.bounds() | {"left": q[0], "right": q[1], "shift": k, "offset": given.zero.astype(jnp.int32)}

    def accumulate(self, taken: Taken) -> Int32[Array, "..."]:
        """Returns the joined tensors of 8 bits, in steps of the result's divided by ``2**shift``."""
        pairs = zip(taken.codes, taken.zeros, ("left", "right"), strict=True)
        return self.join(*((x.astype(jnp.int32) - z) * taken.c[name] for x, z, name in pairs))

    def compute(self, taken: Taken) -> list[Any]:
        c = taken.c
        if taken.bits <= 8:
            cut = taken.rounding.shift(self.accumulate(taken), c["shift"])
        else:
            cut = self.accumulate_long(taken)
        return [compute.clamped(cut + c["offset"], c, taken.dtype)]

    def accumulate_long(self, taken: Taken) -> Int32[Array, "..."]:
        """Returns the same of tensors of which one has 16 bits, in steps of the result's."""
        c, rounding = taken.c, taken.rounding
        wide = [x.astype(jnp.int32) - z for x, z in zip(taken.codes, taken.zeros, strict=True)]
        parts = [((x >> 8) * c[name], (x & 255) * c[name]) for x, name in zip(wide, ("left", "right"), strict=True)]
        if self.is_linear:
            words = long_words((parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]))
            return rounding.shift_words(words, c["shift"])
        return self.join(*(rounding.shift_words(long_words(part), c["shift"]) for part in parts))
