"""One of several tensors' elements, by a predicate that is a constant or computed of integers; on one grid."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Array

from lowbit.interpret.integer.kind import Movement
from lowbit.interpret.integer.nodes import Node
from lowbit.interpret.integer.placer import Placer
from lowbit.program import compat
from lowbit.program.read import Equation, Value

from .table import is_tabular


class Select(Movement):
    """A selection; one of a single tensor and scalars is a table."""

    name = "select"
    after = ("index",)
    joins = True
    shares = True

    def takes(self, equation: Equation, placer: Placer) -> bool:
        if equation.name != "select_n" or is_tabular(equation, placer):
            return False
        return not equation.ins[0].is_data or equation.ins[0] in placer.indices

    def place(self, equation: Equation, placer: Placer, nodes: list[Node]) -> None:
        ins = [placer.need(v, nodes, equation) for v in equation.ins[1:]]
        which = [v for v in equation.ins[:1] if v.is_data]
        placer.add(nodes, self.name, [*ins, *which], list(equation.outs), [equation])
        placer.grids.unify(*ins, equation.outs[0])

    def held(self, node: Node) -> list[Value]:
        return node.equations[0].ins

    def moved(self, node: Node, values: Sequence[Any], zero: Array, get: Callable[[Value], Any]) -> list[Any]:
        which, *rest = node.equations[0].ins
        predicate = values[-1] if which.is_data else get(which)
        return compat.rebind(node.equations[0].eqn, [predicate, *values[: len(rest)]])


KIND = Select()
