"""A constant that meets data where nothing can absorb it: codes on a grid of its own."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lowbit.interpret.integer.kind import Given, Kind, Taken
from lowbit.interpret.integer.nodes import Details, Node
from lowbit.interpret.integer.placer import Placer
from lowbit.program.read import Value


@dataclass(frozen=True, eq=False)
class Held(Details):
    """What a constant knows.

    Attributes:
        value: what it is.
    """

    value: Value

    @property
    def values(self) -> tuple[Value, ...]:
        return (self.value,)


class Constant(Kind):
    """A constant on a grid."""

    name = "constant"
    names = "last"

    def supply(self, var: Value, placer: Placer, nodes: list[Node]) -> Value | None:
        if var.is_data:
            return None
        out = Value(var.shape, var.dtype, True)
        placer.add(nodes, self.name, [], [out], [], details=Held(var))
        return out

    def constants(self, given: Given) -> dict[str, Array]:
        value = given.known.small(given.node.known_as(Held).value)
        return {"codes": given.codes(value.astype(jnp.float32))}

    def compute(self, taken: Taken) -> list[Any]:
        return [jnp.broadcast_to(taken.c["codes"], taken.node.out.shape)]


KIND = Constant()
