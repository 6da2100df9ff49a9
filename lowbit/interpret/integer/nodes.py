"""What the placement makes: integer nodes over a flat program, and what primitives count as what."""

import dataclasses
from typing import TypeVar

from lowbit.interpret.operations import Operation
from lowbit.program import primitives, read
from lowbit.program.read import Equation, Loop, Value

TABULAR = (primitives.ELEMENTWISE - primitives.COMPLEX) | primitives.CASTS | primitives.COPIES
"""Elementwise: of one tensor and scalars, any of them is part of a table."""

MOVES = (
    primitives.SAME
    | primitives.VARYING
    | primitives.CASTS
    | primitives.SHAPED
    | {"broadcast_to", "dynamic_slice", "gather", "pad", "slice", "split", "tile", "unstack"}
    | primitives.EXTREMES
)
"""Of data, these change where elements are or choose among them: the result is on the same grid."""


@dataclasses.dataclass(frozen=True, eq=False)
class Details:
    """What a kind knows of its node besides what every node has; a kind that knows more has a class of its own."""

    @property
    def values(self) -> tuple[Value, ...]:
        """What it reads of parameters and constants, besides what its equations read."""
        return ()


D = TypeVar("D", bound=Details)


@dataclasses.dataclass(eq=False)
class Node:
    """One integer computation, and its definition in float.

    Attributes:
        kind: the name of its kind (`lowbit.interpret.integer.ops`), as in `lowbit.plan.rows.Step`.
        path: unique.
        ins: the data it reads.
        outs: what it makes; more than one only of scans and splits.
        equations: in float, from ``ins`` to ``outs``.
        source: where it was written.
        op: of a dot or convolution.
        chain: the affine equations absorbed by a linear node, in order.
        clips: the bounds absorbed after them: ``("low" or "high", bound)``.
        inner: primitives that a table holds besides.
        details: what its kind knows besides.
        loop: of a scan.
        body: its nodes.
    """

    kind: str
    path: str
    ins: list[Value]
    outs: list[Value]
    equations: list[Equation]
    source: str = ""
    op: Operation | None = None
    chain: list[tuple[Equation, Value]] = dataclasses.field(default_factory=list)
    clips: list[tuple[str, Value]] = dataclasses.field(default_factory=list)
    inner: tuple[str, ...] = ()
    details: Details = dataclasses.field(default_factory=Details)
    loop: Loop | None = None
    body: "list[Node]" = dataclasses.field(default_factory=list)

    @property
    def out(self) -> Value:
        """Its first result."""
        return self.outs[0]

    @property
    def absorbed(self) -> tuple[str, ...]:
        """The primitives besides the main one."""
        clips = ({"low": "max", "high": "min"}[which] for which, _ in self.clips)
        return (*self.inner, *(e.name for e, _ in self.chain), *clips)

    def known_as(self, cls: type[D]) -> D:
        """Returns the details, which are of this class."""
        assert isinstance(self.details, cls), self.path
        return self.details


@dataclasses.dataclass(eq=False)
class Placement:
    """The integer form of a flat program.

    Attributes:
        flat: what it is of.
        nodes: in order.
        outs: the results: data on grids.
        grids: the path of the grid of every value that crosses a node.
    """

    flat: read.Program
    nodes: list[Node]
    outs: list[Value]
    grids: dict[Value, str]

    def everywhere(self) -> list[tuple[Node, tuple[str, ...]]]:
        """Returns all nodes, those inside scans included, each with the paths of the scans it is in."""
        places: list[tuple[Node, tuple[str, ...]]] = []

        def visit(nodes: list[Node], scope: tuple[str, ...]) -> None:
            for node in nodes:
                places.append((node, scope))
                visit(node.body, (*scope, node.path))

        visit(self.nodes, ())
        return places
