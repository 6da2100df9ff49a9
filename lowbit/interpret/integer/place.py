"""Placement: which integer computation every equation becomes, and which values share a grid.

The rules are those of the kinds (`lowbit.interpret.integer.ops`), in the order in which those are asked:

* (e) softmax and normalizations are matched with templates, before anything else;
* (a) a dot or convolution, and every other sum, absorbs the affine equations by constants that follow it while nothing else
  reads what lies between, then relu and clips; after a weight, constants that vary along its channels alone, as the biases of
  hardware do: others are an affine step of their own;
* (b) movements share one grid; concatenations, selections and loop carries unify theirs;
* (c) what is elementwise in one tensor becomes a table;
* (d) sums, products and maxima of two tensors get a grid and absorb a relu or clip that follows;
* integer arguments are indices: what is computed of integers alone stays as it is written, and may pick rows of a weight;
* (f) anything else raises, with its source line.
"""

from collections.abc import Mapping

from lowbit.interpret.operations import Operation
from lowbit.program import read
from lowbit.program.read import Value

from .nodes import Node, Placement
from .ops import kind_named, kinds
from .placer import Placer


def place(flat: read.Program, operations: Mapping[tuple[int, ...], Operation]) -> Placement:
    """Returns the integer form of a flat program.

    Args:
        flat: the program.
        operations: its dots and convolutions by address.

    Raises:
        ValueError: for an equation that has no integer form, with its source line (rule f).
    """
    placer = Placer(flat, operations, kinds())
    for var in flat.inputs[flat.count :]:
        if var in placer.readers:
            placer.tried(lambda var=var: placer.input(var), [var], placer.top)
    placer.run(flat.equations, placer.top)
    outs: list[Value] = []
    for var in flat.outs:
        placer.tried(lambda var=var: outs.append(placer.need(var, placer.top, None)), [], placer.top)
    placer.refused.check()
    return Placement(flat, placer.top, outs, _named_grids(placer))


def _named_grids(placer: Placer) -> dict[Value, str]:
    nodes = list(dict.fromkeys(placer.maker.values()))
    namers: list[Node] = [node for when in ("first", "last") for node in nodes if kind_named(node.kind).names == when]
    return placer.grids.named(namers, [*(out for node in nodes for out in node.outs), *placer.inner])
