"""A loop over data: its carries are on one grid for all turns."""

from dataclasses import dataclass
from typing import Any

from lowbit.interpret.integer.absorb import is_float
from lowbit.interpret.integer.kind import Kind, Taken
from lowbit.interpret.integer.nodes import Details, Node
from lowbit.interpret.integer.placer import Placer
from lowbit.program.read import Equation, Value


@dataclass(frozen=True, eq=False)
class Turns(Details):
    """What a scan knows.

    Attributes:
        carries: what it carries, at the start of a turn.
        afters: the same at its end.
        ys: what it stacks.
        count: of the carries; what it reads begins with theirs.
    """

    carries: list[Value]
    afters: list[Value]
    ys: list[Value]
    count: int


class Scan(Kind):
    """A scan, whose turns the evaluator walks (`lowbit.interpret.integer.run.evaluate`)."""

    name = "scan"
    takes_loops = True
    names = "never"
    joins = True
    shares = True

    def takes(self, equation: Equation, placer: Placer) -> bool:
        return equation.call == "scan"

    def place(self, equation: Equation, placer: Placer, nodes: list[Node]) -> None:
        loop = equation.loop
        assert loop is not None
        for var in loop.xs:
            if not var.is_data:
                why = f"it is over parameters or constants of shape {var.shape}; write the layers out in a Python loop"
                raise placer.error(equation, why)
        for var in (*loop.inits, *loop.slices, *loop.ys):
            if not is_float(var):
                why = f"it carries or scans {var.dtype} values, which have no grid; unroll it"
                raise placer.error(equation, why)
        moving = [i for i, (a, b) in enumerate(zip(loop.inits, loop.carries, strict=True)) if a is not b]
        inits = [placer.need(loop.inits[i], nodes, equation) for i in moving]
        xs = [placer.need(v, nodes, equation) for v in loop.xs]
        carries = [loop.carries[i] for i in moving]
        body: list[Node] = []
        for outer, inner in (*zip(inits, carries, strict=True), *zip(xs, loop.slices, strict=True)):
            placer.near[inner], placer.home[inner] = placer.near[outer], body
            placer.inner.add(inner)
            placer.grids.unify(outer, inner)
        node = placer.add(nodes, self.name, [*inits, *xs], [], [equation], loop=loop)
        node.body = body
        placer.run(loop.equations, body)
        afters = [placer.need(loop.afters[i], body, equation) for i in moving]
        ys = [placer.need(v, body, equation) for v in loop.ys]
        count = len(loop.inits)
        node.outs = [*(equation.outs[i] for i in moving), *equation.outs[count:]]
        node.details = Turns(carries, afters, ys, len(moving))
        for outer, inner, init in zip(node.outs, afters, inits, strict=False):
            placer.grids.unify(init, inner, outer)
        for outer, inner in zip(node.outs[len(moving) :], ys, strict=True):
            placer.grids.unify(inner, outer)
        for out, inner in zip(node.outs, (*afters, *ys), strict=True):
            placer.near[out], placer.home[out], placer.maker[out] = placer.near[inner], nodes, node
        for i, var in enumerate(equation.outs[:count]):
            if i not in moving and var in placer.readers:
                raise placer.error(
                    equation, "a value that it carries unchanged is read after it; read the value itself"
                )

    def compute(self, taken: Taken) -> list[Any]:
        return list(taken.codes)


KIND = Scan()
