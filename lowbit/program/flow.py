"""Where positive factors of channels go through a program: forward from what can make them to what can take them back.

Every output channel of a weight, of a gain after a normalisation and of a table is a channel of its own. Equations that commute
with positive factors hand channels on: movements, sums along other axes, relu, maxima in windows, products with what is
constant. Sums of two values make their channels one; so do loops, which hand a turn's result to the next. What adds a
parameter has that parameter scaled with it. A weight that contracts channels takes their factors back. Any other equation
pins what it reads, and is why.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from . import primitives
from .axes import is_widened
from .channels import Channels, Labels, Reason, deeper, embedded, reshaped, transposed
from .constants import written_value
from .evaluate import needed
from .read import Equation, Program, Value

INLINED = ("jit", "remat", "custom_jvp")
"""Calls that are read through: what differentiates otherwise than its body computes is left whole."""


@dataclasses.dataclass(eq=False)
class Use:
    """One reading of a fixed input by an equation over data, and the factors that it can take there.

    Attributes:
        leaf: index of the fixed input; -1 for a written bound of a clip.
        kind: ``weight``, ``table`` or ``gain``: it makes channels; ``bias`` or ``bound``: it is added to, or limits, channels.
        equation: the equation.
        operand: which operand of it.
        makes: in the leaf's coordinates, the channels whose factor the leaf takes.
        takes: the channels whose factor it takes back.
        read: what data the equation reads, if it contracts channels, and their channels.
        made: the channels of what it makes.
    """

    leaf: int
    kind: str
    equation: Equation
    operand: int
    makes: Labels
    takes: Labels
    read: tuple[Value, Labels] | None = None
    made: tuple[Value, Labels] | None = None


class Flow:
    """The channels of every value of a program.

    Args:
        program: its fixed inputs are what can be scaled.
        rules: by primitive, what an equation does to channels.
        has_bounds: whether the written bounds of a clip may be scaled.
        gains: addresses of products with a fixed value that make channels: where what they multiply has none.
    """

    def __init__(
        self, program: Program, rules: Mapping[str, "Rule"], *, has_bounds: bool, gains: frozenset[tuple[int, ...]]
    ):
        self.program, self.rules, self.has_bounds, self.gains = program, rules, has_bounds, gains
        self.channels = Channels()
        self.labels: dict[Value, Labels] = {}
        self.depths: dict[Value, int] = {}
        self.slices: dict[Value, tuple[Value, int]] = {}
        self.levels: dict[Value, frozenset[int]] = {}
        self.uses: list[Use] = []
        self.opaque: dict[int, Reason] = {}
        self.positive: list[Labels] = []
        self.passed: list[tuple[Equation, Labels]] = []
        self.products: list[tuple[Equation, Labels]] = []
        self.leaves = {v: i for i, v in enumerate(program.inputs[: program.count])}
        for value in program.inputs[program.count :]:
            self.labels[value] = np.zeros([1] * value.ndim, np.int64)
        self.run(program.equations, program.outs, 0)
        for value in program.outs:
            why = Reason("result", "", "is a result of the model")
            if value.is_data:
                self.channels.pin(self.of(value, 0), why)
            else:
                self.see(value, why)
        self._shared()

    def of(self, value: Value, lead: int) -> Labels:
        """Returns the channels of data, inside ``lead`` loops."""
        if not value.is_data:
            return np.zeros([1] * (lead + value.ndim), np.int64)
        return deeper(self.labels[value], self.depths.get(value, 0), lead)

    def put(self, value: Value, labels: Labels, lead: int) -> None:
        """Says what the channels of data are."""
        self.labels[value], self.depths[value] = labels, lead

    def run(self, equations: Sequence[Equation], outs: Sequence[Value], lead: int) -> None:
        """Reads equations, those that the results need."""
        for equation in needed(equations, outs):
            if not equation.is_data:
                for value in equation.outs:
                    self.depths[value] = lead
                continue
            rule = self.rules.get(equation.name, _unknown)
            labels = rule(self, equation, lead)
            if labels is not None:
                self.put(equation.outs[0], labels, lead)
                self.passed.append((equation, labels))

    def stop(self, equation: Equation, text: str, lead: int) -> Labels:
        """Pins all that an equation reads; what it makes has no channels to scale."""
        why = Reason(equation.name, equation.source, text)
        for value in equation.ins:
            if value.is_data:
                self.channels.pin(self.of(value, lead), why)
            else:
                self.see(value, why)
        for value in equation.outs:
            self.put(value, np.zeros([1] * (lead + value.ndim), np.int64), lead)
        return self.labels[equation.outs[0]] if equation.outs else np.zeros(lead, np.int64)

    def reason(self, equation: Equation, text: str) -> Reason:
        """Returns why an equation lets no factor through."""
        return Reason(equation.name, equation.source, text)

    def see(self, value: Value, why: Reason) -> None:
        """Notes that a fixed value is needed as it is: none of the leaves behind it may change."""
        todo, seen = [value], set()
        while todo:
            value = todo.pop()
            if value in seen or value.is_written:
                continue
            seen.add(value)
            if value in self.leaves:
                self.opaque.setdefault(self.leaves[value], why)
            elif value in self.slices:
                todo.append(self.slices[value][0])
            elif value.source is not None:
                todo += value.source.ins

    def turns(self, value: Value) -> frozenset[int]:
        """Returns the loops, by how many are around them, in whose turns a fixed value differs."""
        if value.is_written or value in self.leaves:
            return frozenset()
        if value in self.slices:
            outer, level = self.slices[value]
            return self.turns(outer) | {level}
        if value not in self.levels:
            source = value.source
            self.levels[value] = (
                frozenset().union(*(self.turns(v) for v in source.ins)) if source is not None else frozenset()
            )
        return self.levels[value]

    def fresh(self, value: Value, axes: Sequence[int], lead: int) -> Labels:
        """Returns channels of a fixed value's own: one for every place along ``axes``, and for every turn in which it differs."""
        levels = self.turns(value)
        loops = [n if i in levels else 1 for i, n in enumerate(self.lengths[:lead])]
        return self.channels.fresh([*loops, *(n if i in axes else 1 for i, n in enumerate(value.shape))])

    lengths: Sequence[int] = ()
    """Of the loops around what is read now."""

    def absorb(self, use: Use, value: Value, makes: Labels, takes: Labels, lead: int) -> str | None:
        """Has a fixed value take the factors of ``makes`` and take back those of ``takes``; returns why it cannot, or None."""
        why = self.reason(use.equation, f"reads {use.kind} values that are shared between channels")
        while lead > self.depths.get(value, 0):
            lead -= 1
            makes = np.squeeze(self.channels.along(makes, [lead], why), lead)
            takes = np.squeeze(self.channels.along(takes, [lead], why), lead)
        if value in self.leaves:
            self.uses.append(dataclasses.replace(use, leaf=self.leaves[value], makes=makes, takes=takes))
            return None
        if value in self.slices:
            return self.absorb(use, self.slices[value][0], makes, takes, self.slices[value][1])
        if value.is_written:
            return None if not np.any(value.value) else "is a constant that is not zero"
        source = value.source
        if source is None:
            return "is what a loop carries"
        inside = _back(self, source, why)
        if inside is not None:
            return self.absorb(use, source.ins[0], inside(makes, lead), inside(takes, lead), lead)
        return self._computed(use, source, makes, takes, lead)

    def _computed(self, use: Use, source: Equation, makes: Labels, takes: Labels, lead: int) -> str | None:
        """A product takes factors on one side, a sum on both."""
        if source.name in ("mul", "div"):
            first, second = source.ins
            choices = [(first, second)] if source.name == "div" else [(first, second), (second, first)]
            choices.sort(key=lambda pair: not self._is_plain(pair[0]))
            value, other = choices[0]
            if not value.is_written and value.shape == source.outs[0].shape:
                taken = self.absorb(use, value, makes, takes, lead)
                if taken is None:
                    self.see(other, self.reason(source, "is a factor of what is scaled"))
                return taken
        if source.name in ("add", "sub", "add_any") and all(v.shape == source.outs[0].shape for v in source.ins):
            return next((r for v in source.ins if (r := self.absorb(use, v, makes, takes, lead)) is not None), None)
        return f"is computed by {source.name}{f' ({source.source})' if source.source else ''}"

    def _is_plain(self, value: Value) -> bool:
        """Whether a value is a leaf, moved at most."""
        while value not in self.leaves:
            if value in self.slices:
                value = self.slices[value][0]
            elif value.source is not None and value.source.name in primitives.MOVES and value.source.ins:
                value = value.source.ins[0]
            else:
                return False
        return True

    def _shared(self) -> None:
        """One leaf read twice has one set of factors; one that is needed as it is has none."""
        first: dict[int, Use] = {}
        for use in self.uses:
            why = self.reason(
                use.equation, "reads a parameter that has another use, whose factors would have to be the same"
            )
            if use.leaf in first:
                other = first[use.leaf]
                self._same(use, other, why)
            else:
                first[use.leaf] = use
        for use in self.uses:
            if use.leaf in self.opaque:
                self.channels.pin(use.makes, self.opaque[use.leaf])
                self.channels.pin(use.takes, self.opaque[use.leaf])

    def _same(self, use: Use, other: Use, why: Reason) -> None:
        """Two readings of one leaf: where both read an entry, their factors are one."""
        a, b = (np.broadcast_arrays(u.makes, u.takes) for u in (use, other))
        both = (a[0] >= 0) & (b[0] >= 0)
        if not both.any():
            return
        for x, y in zip(a, b, strict=True):
            x, y, mask = np.broadcast_arrays(x, y, both)
            self.channels.unify(np.where(mask, x, -1), np.where(mask, y, -1), why)


Rule = Callable[[Flow, Equation, int], Labels | None]


def _back(flow: Flow, source: Equation, why: Reason) -> Callable[[Labels, int], Labels] | None:
    """How channels of what a movement of a fixed value makes are those of what it reads; None of what is no such movement."""
    name, params = source.name, source.params
    if name not in primitives.MOVES or len(source.outs) != 1 or not source.ins:
        return None
    inner, out = source.ins[0].shape, source.outs[0].shape
    if name in primitives.SAME | primitives.VARYING or is_widened(source):
        return lambda labels, lead: labels
    if name == "transpose":
        order = params["permutation"]
        return lambda labels, lead: transposed(labels, lead, [order.index(i) for i in range(len(order))])
    if name == "squeeze" or (name == "reshape" and params.get("dimensions") is None):
        return lambda labels, lead: reshaped(labels, lead, out, inner)
    if name == "rev":
        return lambda labels, lead: np.flip(labels, tuple(lead + i for i in params["dimensions"]))
    if name == "slice":
        strides = params["strides"] or [1] * len(inner)
        cuts = [slice(*cut) for cut in zip(params["start_indices"], params["limit_indices"], strides, strict=True)]
        return lambda labels, lead: embedded(labels, lead, cuts, inner)
    if name == "broadcast_in_dim":
        dims = params["broadcast_dimensions"]

        def narrowed(labels: Labels, lead: int) -> Labels:
            spread = [i for i in range(len(out)) if i not in dims or inner[dims.index(i)] != out[i]]
            labels = flow.channels.along(labels, [lead + i for i in spread], why)
            return np.squeeze(labels, tuple(lead + i for i in range(len(out)) if i not in dims))

        return narrowed
    return None


def _unknown(flow: Flow, equation: Equation, lead: int) -> None:
    flow.stop(equation, "does not commute with positive factors of its channels", lead)


def is_zero(value: Value) -> bool:
    """Returns whether a value is a written zero, or minus infinity: what a factor leaves as it is."""
    known = written_value(value) if not value.is_data else None
    return known is not None and not np.any(np.where(np.isinf(known), 0, known) if known.dtype != np.bool_ else known)
