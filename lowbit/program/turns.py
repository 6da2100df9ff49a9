"""Which axes of which values rotate together: the state of `lowbit.program.spaces`, whose rules are in `lowbit.program.turning`."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from . import primitives
from .axes import is_widened
from .channels import Reason
from .evaluate import needed
from .read import Equation, Program, Value

Label = tuple[str, int]
"""Of an axis: ``("space", number)``, ``("square", number)``: squares of its elements, ``("even", 0)``: all along it is one, or
``("other", 0)``."""
EVEN: Label = ("even", 0)
OTHER: Label = ("other", 0)


@dataclasses.dataclass(frozen=True)
class Side:
    """One axis of a leaf that is rotated.

    Attributes:
        leaf: index among the fixed inputs.
        axis: of it.
        kind: ``maker``, ``taker`` or ``bias``: all are rotated alike.
    """

    leaf: int
    axis: int
    kind: str


class Turns:
    """The spaces of every value of a program.

    Args:
        program: its fixed inputs are what can be rotated.
        rules: by primitive, what an equation does to spaces.
        stopped: the rule of the rest.
        ones: fixed inputs of ones.
    """

    def __init__(self, program: Program, rules: Mapping[str, "Rule"], stopped: "Rule", ones: frozenset[int]):
        self.rules, self.stopped = rules, stopped
        self.ones = ones
        self.parent: list[int] = []
        self.size: dict[int, int] = {}
        self.why: dict[int, Reason] = {}
        self.with_mean: set[int] = set()
        self.sides: list[tuple[Side, int]] = []
        self.still: set[tuple[int, int]] = set()
        self.seen: dict[int, Reason] = {}
        self.labels: dict[Value, tuple[Label, ...]] = {}
        self.slices: dict[Value, Value] = {}
        self.leaves = {v: i for i, v in enumerate(program.inputs[: program.count])}
        for value in program.inputs[program.count :]:
            self.labels[value] = tuple(EVEN if n == 1 else OTHER for n in value.shape)
        self.run(program.equations, program.outs)
        for value in program.outs:
            self.pin(self.of(value), Reason("result", "", "is a result of the model"))

    def root(self, number: int) -> int:
        """Returns the number that stands for all that are one space."""
        while self.parent[number] != number:
            number = self.parent[number]
        return number

    def fresh(self, size: int) -> Label:
        """Returns a space of its own."""
        self.parent.append(len(self.parent))
        self.size[self.parent[-1]] = size
        return "space", self.parent[-1]

    def pin(self, labels: Sequence[Label], why: Reason) -> None:
        """Says that spaces cannot be rotated."""
        for kind, number in labels:
            if kind in ("space", "square"):
                self.why.setdefault(self.root(number), why)

    def unify(self, a: Label, b: Label, why: Reason) -> Label:
        """Makes two axes that meet one; a mean that is added to a space needs a matrix that keeps the ones."""
        if a[0] == b[0] == "space":
            low, high = sorted((self.root(a[1]), self.root(b[1])))
            if low != high:
                self.parent[high] = low
                self.size[low] = math.gcd(self.size[low], self.size[high])
                if high in self.why:
                    self.why.setdefault(low, self.why[high])
                if high in self.with_mean:
                    self.with_mean.add(low)
            return "space", low
        if EVEN in (a, b):
            other = b if a == EVEN else a
            if other[0] == "space":
                self.with_mean.add(self.root(other[1]))
                return other
            if other == EVEN:
                return EVEN
        self.pin((a, b), why)
        return OTHER

    def of(self, value: Value) -> tuple[Label, ...]:
        """Returns the labels of a value's axes."""
        if value.is_data:
            return self.labels[value]
        return tuple(EVEN if i in self.even(value) else OTHER for i in range(value.ndim))

    def even(self, value: Value) -> frozenset[int]:
        """The axes that a fixed value is constant along; all of them for a parameter of ones."""
        whole = frozenset(range(value.ndim))
        if value.is_written:
            return (
                whole
                if np.unique(np.asarray(value.value)).size == 1
                else frozenset(i for i, n in enumerate(value.shape) if n == 1)
            )
        base = value
        while base in self.slices:
            base = self.slices[base]
        if base in self.leaves and self.leaves[base] in self.ones:
            return whole
        lone = frozenset(i for i, n in enumerate(value.shape) if n == 1)
        source = value.source
        if source is None:
            return lone
        if source.name == "broadcast_in_dim":
            dims, inner = source.params["broadcast_dimensions"], source.ins[0]
            below = self.even(inner)
            return (
                frozenset(
                    i for i in whole if i not in dims or dims.index(i) in below or inner.shape[dims.index(i)] == 1
                )
                | lone
            )
        if source.name in primitives.ELEMENTWISE | primitives.SAME | primitives.CASTS and len(source.outs) == 1:
            parts = [self.even(v) if v.ndim == value.ndim else whole for v in source.ins]
            return frozenset.intersection(*parts) | lone
        if source.name in ("reshape", "squeeze", "transpose") and self.even(source.ins[0]) == frozenset(
            range(source.ins[0].ndim)
        ):
            return whole
        return lone

    def run(self, equations: Sequence[Equation], outs: Sequence[Value]) -> None:
        """Reads equations, those that the results need."""
        for equation in needed(equations, outs):
            if equation.is_data:
                labels = self.rules.get(equation.name, self.stopped)(self, equation)
                if labels is not None:
                    self.labels[equation.outs[0]] = labels

    def see(self, value: Value, why: Reason) -> None:
        """A fixed value is needed as it is: the leaves behind it keep their axes."""
        todo = [value]
        while todo:
            value = todo.pop()
            if value in self.leaves:
                if self.leaves[value] not in self.ones:
                    self.seen.setdefault(self.leaves[value], why)
            elif value in self.slices:
                todo.append(self.slices[value])
            elif value.source is not None:
                todo += value.source.ins

    def leaf_axes(self, value: Value) -> tuple[int, list[int | None]] | None:
        """The leaf that a fixed value is a movement of, and which of its axes each axis is; None of what is computed."""
        if value in self.leaves:
            return self.leaves[value], list(range(value.ndim))
        if value in self.slices:
            leaf_axes = self.leaf_axes(self.slices[value])
            return None if leaf_axes is None else (leaf_axes[0], leaf_axes[1][1:])
        source = value.source
        if source is None or not source.ins or len(source.outs) != 1:
            return None
        leaf_axes = self.leaf_axes(source.ins[0])
        if leaf_axes is None:
            return None
        leaf, axes = leaf_axes
        if source.name in primitives.SAME | primitives.VARYING or is_widened(source):
            return leaf, axes
        if source.name == "transpose":
            return leaf, [axes[i] for i in source.params["permutation"]]
        if source.name in ("reshape", "squeeze", "broadcast_in_dim"):
            inner = [(n, a) for n, a in zip(source.ins[0].shape, axes, strict=True) if n != 1]
            outer = [n for n in value.shape if n != 1]
            if [n for n, _ in inner] == outer:
                rest = iter(a for _, a in inner)
                return leaf, [None if n == 1 else next(rest) for n in value.shape]
            if source.name == "broadcast_in_dim":
                dims = source.params["broadcast_dimensions"]
                return leaf, [
                    axes[dims.index(i)] if i in dims and source.ins[0].shape[dims.index(i)] == n else None
                    for i, n in enumerate(value.shape)
                ]
        return None

    def side(self, value: Value, axis: int, label: Label, kind: str, why: Reason) -> bool:
        """Notes that an axis of a fixed value rotates with a space; says whether it can."""
        leaf_axes = self.leaf_axes(value)
        if leaf_axes is None or leaf_axes[1][axis] is None:
            self.pin((label,), why)
            self.see(value, why)
            return False
        leaf, axes = leaf_axes
        place = axes[axis]
        assert place is not None
        self.sides.append((Side(leaf, place, kind), label[1]))
        return True

    def keep(self, value: Value, axis: int) -> None:
        """Notes that an axis of a fixed value is read as it is."""
        axes = self.leaf_axes(value)
        place = None if axes is None else axes[1][axis]
        if axes is not None and place is not None:
            self.still.add((axes[0], place))
        elif axes is None:
            self.see(value, Reason("program", "", "computes with it"))


Rule = Callable[[Turns, Equation], tuple[Label, ...] | None]
