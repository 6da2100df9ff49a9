"""Integers and predicates: arguments, and what is computed of them alone. They stay as they are written."""

from typing import Any

from lowbit.interpret.integer.absorb import is_float
from lowbit.interpret.integer.kind import Kind, Taken
from lowbit.interpret.integer.nodes import Node
from lowbit.interpret.integer.placer import Placer
from lowbit.program.read import Equation


class Index(Kind):
    """Integers without a grid; every interpretation computes them by their equation (`lowbit.interpret.integer.run`)."""

    name = "index"
    after = ("lookup",)
    names = "never"
    reads_grids = False

    def takes(self, equation: Equation, placer: Placer) -> bool:
        data = [v for v in equation.ins if v.is_data]
        return placer.indices.issuperset(data) and not any(is_float(v) for v in equation.outs)

    def place(self, equation: Equation, placer: Placer, nodes: list[Node]) -> None:
        placer.indices |= set(equation.outs)
        ins = [v for v in equation.ins if v.is_data]
        placer.add(nodes, self.name, ins, list(equation.outs), [equation])

    def compute(self, taken: Taken) -> list[Any]:
        return list(taken.codes)


KIND = Index()
