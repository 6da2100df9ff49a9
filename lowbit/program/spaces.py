"""`spaces`: along which axes a network may be rotated, so that the function stays what it is.

An axis of a weight's result is a space of its own: its elements may be mixed by an orthogonal matrix, if what reads them mixes them
back. Sums make spaces one; products with what is constant along the axis, sums of squares and products of two values summed
over it let rotations through; so does the subtraction of a mean, if the matrix keeps the vector of ones. An axis cut in
heads is rotated head by head. Everything else stands in the way. So the residual stream of a transformer, and the heads of its values,
are found, in scans over layers too.
"""

import dataclasses
from collections.abc import Collection

from .channels import Reason
from .read import Program
from .turning import TURNING, stopped
from .turns import Side, Turns


@dataclasses.dataclass(frozen=True)
class Space:
    """One space.

    Attributes:
        size: of the matrix; longer axes are rotated in blocks of it.
        keeps_ones: whether the matrix has to keep the vector of ones.
        sides: the axes that are rotated.
    """

    size: int
    keeps_ones: bool
    sides: tuple[Side, ...]


@dataclasses.dataclass(frozen=True)
class Fixed:
    """What makes a space that cannot be rotated.

    Attributes:
        side: the axis.
        reason: the equation that stands in the way.
    """

    side: Side
    reason: Reason


def spaces(program: Program, ones: Collection[int] = ()) -> tuple[tuple[Space, ...], tuple[Fixed, ...]]:
    """Returns the spaces of a program, and what makes others, with the equation in the way.

    Args:
        program: from `lowbit.program.read` with `lowbit.program.flow.INLINED` inlined.
        ones: fixed inputs all of whose entries are 1: products with them do nothing (gains that were folded).
    """
    walk = Turns(program, TURNING, stopped, frozenset(ones))
    joined, fixed = [], []
    by_root: dict[int, dict[Side, None]] = {}
    for side, number in walk.sides:
        by_root.setdefault(walk.root(number), {})[side] = None
    for root, sides in by_root.items():
        reason = walk.why.get(root)
        kinds = {side.kind for side in sides}
        conflict = _conflict(walk, root, sides)
        if reason is None and conflict is None and {"maker", "taker"} <= kinds and walk.size[root] > 1:
            joined.append(Space(walk.size[root], root in walk.with_mean, tuple(sides)))
        else:
            why = reason or conflict or Reason("program", "", "does not contract it with a weight")
            fixed += [Fixed(side, why) for side in sides if side.kind == "maker"]
    return tuple(joined), tuple(fixed)


def _conflict(walk: "Turns", root: int, sides: Collection[Side]) -> Reason | None:
    """A leaf's axis that is read otherwise as well cannot be rotated."""
    for side in sides:
        if side.leaf in walk.seen:
            return walk.seen[side.leaf]
        place = side.leaf, side.axis
        if place in walk.still or any(
            walk.root(n) != root for other, n in walk.sides if (other.leaf, other.axis) == place
        ):
            return Reason(
                "program", "", "reads a parameter that has another use, along an axis that is not rotated there"
            )
    return None
