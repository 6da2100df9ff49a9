"""Tensors one behind the other, on one grid."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Array

from lowbit.interpret.integer.kind import Movement
from lowbit.interpret.integer.nodes import Node
from lowbit.interpret.integer.placer import Placer
from lowbit.program import compat
from lowbit.program.read import Equation, Value


class Concatenate(Movement):
    """A concatenation or a stack."""

    name = "concatenate"
    after = ("index",)
    joins = True
    shares = True

    def takes(self, equation: Equation, placer: Placer) -> bool:
        return equation.name in ("concatenate", "stack")

    def place(self, equation: Equation, placer: Placer, nodes: list[Node]) -> None:
        ins = [placer.need(v, nodes, equation) for v in equation.ins]
        placer.add(nodes, self.name, ins, list(equation.outs), [equation])
        placer.grids.unify(*ins, equation.outs[0])

    def moved(self, node: Node, values: Sequence[Any], zero: Array, get: Callable[[Value], Any]) -> list[Any]:
        return compat.rebind(node.equations[0].eqn, list(values))


KIND = Concatenate()
