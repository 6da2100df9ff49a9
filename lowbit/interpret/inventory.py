"""Reading a program: which equations are operations, and which operand of each is a weight. By data flow, never by shape."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from jax import lax

from lowbit.core.paths import common_prefix, derived_path
from lowbit.program import primitives
from lowbit.program.eqn import Eqn
from lowbit.program.evaluate import evaluate
from lowbit.program.read import Equation, Program

from . import moves, picks
from .kinds import (
    Address,
    Data,
    Derived,
    Kind,
    Picked,
    Weight,
    carried,
    combine,
    computed,
    drawn,
    is_layered,
    join,
    layer_of,
    leaf_contraction,
    leaves_of,
    left_behind,
    makers,
    multiplied,
    turning,
    varies,
)
from .operations import Inventory, Operation

Stack = tuple[int, ...]
"""Lengths of the scans over layers that an equation is in."""


def take_inventory(
    program: Program, leaf_paths: Sequence[str], leaf_shapes: Sequence[tuple[int, ...]], *, has_picks: bool = True
) -> Inventory:
    """Returns the operations of a program whose first inputs are the parameter leaves.

    Args:
        program: with no call inlined.
        leaf_paths: the paths of the leaves.
        leaf_shapes: their shapes.
        has_picks: whether a matrix that data picks stays a weight where an operation takes it as one; else every look-up is
            an operation.
    """
    lookups: frozenset[Address] | None = frozenset() if has_picks else None
    while True:
        sizes = [math.prod(s) for s in leaf_shapes]
        inventory = Inventory(program, list(leaf_paths), sizes=sizes, shapes=list(leaf_shapes))
        reader = _Reader(inventory, lookups)
        reader.whole()
        if lookups is None or reader.picked <= lookups:
            break
        lookups |= reader.picked  # what something else than an operation reads: read again, with a look-up there
    counts: dict[str, int] = {}
    for op in inventory.operations:
        counts[op.base] = counts.get(op.base, 0) + 1
    seen: dict[str, int] = {}
    named = []
    for op in inventory.operations:
        number = seen.get(op.base, 0)
        seen[op.base] = number + 1
        path = op.base if counts[op.base] == 1 else f"{op.base}@{number}"
        named.append(dataclasses.replace(op, path=path))
    inventory.operations = named
    return inventory


MULTIPLY_AND_SUM = "multiply_and_sum"
"""What the plan calls a product of matrices that is written as a product of elements and a sum."""


class _Reader:
    """The walk: pushes kinds through equations, records operations when ``recording``.

    Args:
        inventory: what is found goes there.
        lookups: where look-ups are operations whoever reads them; None: everywhere.
    """

    def __init__(self, inventory: Inventory, lookups: frozenset[Address] | None):
        self.inventory = inventory
        self.lookups = lookups
        self.picked: set[Address] = set()  # picked, and then read by something that takes no weight
        self.recording = True
        self.products: dict[str, int] = {}
        self.constants = 0
        self.own_gradient = ""

    def whole(self) -> None:
        """Reads the program."""
        program, shapes = self.inventory.program, self.inventory.shapes
        kinds: list[Kind] = [Weight(i, moves.leaf_axes(shape)) for i, shape in enumerate(shapes)]
        kinds += [Data()] * (len(program.inputs) - len(kinds))
        outs = self.settled(self.body(program, kinds, ()))
        self.inventory.results = makers(outs)
        for leaf in frozenset().union(*(leaves_of(k) for k in outs)):
            self.inventory.uses.setdefault(leaf, {})["the result"] = None

    def body(self, program: Program, kinds: Sequence[Kind], stack: Stack) -> list[Kind]:
        """Returns the kinds of a program's results."""
        return evaluate(
            program,
            kinds,
            otherwise=lambda equation, kinds: self.equation(equation, kinds, stack),
            constant=lambda _: Derived(),
        )

    def equation(self, equation: Equation, kinds: list[Kind], stack: Stack) -> Sequence[Kind]:
        if equation.call is not None:
            return getattr(self, "_" + equation.call)(equation, kinds, stack)
        if equation.is_unseen and self.recording:
            self.inventory.unseen.append((equation.name, equation.source))
        if equation.name in primitives.PRODUCTS and any(isinstance(k, Data) for k in kinds):
            return [self.record(equation, self.weights_of(equation, kinds), stack)]
        if (
            equation.name in primitives.LOOKUPS
            and any(isinstance(k, Data) for k in kinds[1:])
            and self.is_table(kinds[0])
        ):
            return [self.lookup(equation, kinds, stack)]
        if equation.name in primitives.EACH:
            return kinds
        first = kinds[0] if kinds else None
        if isinstance(first, Weight | Picked):
            axes = moves.track(equation.eqn, first.axes)
            if axes is not None and isinstance(first, Picked):
                return [dataclasses.replace(first, axes=axes)]
            if axes is not None and isinstance(first, Weight):
                cuts = moves.cuts(equation.eqn, first.axes, first.cuts, first.flipped)
                flipped = moves.flipped(equation.eqn, axes, first.flipped)
                return [Weight(first.leaf, axes, varies(kinds), flipped, cuts)]
        kinds = self.settled(kinds)
        self.use(equation, kinds)
        return [combine(equation, kinds)] * len(equation.outs)

    def use(self, equation: Equation, kinds: Sequence[Kind]) -> None:
        """Notes which leaves an equation computes with: those moved there, and any that meet data or an unknown primitive."""
        if not self.recording:
            return
        has_data = any(isinstance(k, Data) for k in kinds)
        is_unknown = primitives.meaning(equation.name) == primitives.UNKNOWN
        if not has_data and not is_unknown and equation.name in moves.NAMES:
            return
        taken = [
            leaf for k in kinds for leaf in (leaves_of(k) if has_data or is_unknown or isinstance(k, Weight) else ())
        ]
        if is_unknown and taken and (here := (equation.name, equation.source)) not in self.inventory.unseen:
            self.inventory.unseen.append(here)
        for leaf in taken:
            self.inventory.uses.setdefault(leaf, {})[f"{equation.name} {equation.source}".strip()] = None
        for leaf in multiplied(equation, kinds):
            self.inventory.uses.setdefault(leaf, {})[f"{MULTIPLY_AND_SUM} {equation.source}".strip()] = None

    def settled(self, kinds: Sequence[Kind]) -> list[Kind]:
        """Returns kinds as something other than an operation reads them: what was picked is data of a look-up."""
        if self.recording:
            self.picked |= frozenset().union(*(k.picks for k in kinds if isinstance(k, Picked)))
        return [Data(k.near, makers=k.makers, drawn=k.picks) if isinstance(k, Picked) else k for k in kinds]

    def changing(self, kinds: Sequence[Kind], unchanged: Sequence[bool]) -> list[Kind]:
        """Returns what a loop carries: what is the same in every turn is what it was."""
        return [k if same else self.settled([k])[0] for k, same in zip(kinds, unchanged, strict=True)]

    def is_table(self, kind: Kind) -> bool:
        return isinstance(kind, Picked) or bool(leaves_of(kind))

    def lookup(self, equation: Equation, kinds: list[Kind], stack: Stack) -> Data:
        """A look-up: of matrices, that an operation may take as its weight, it is put off."""
        eqn, address = equation.eqn, equation.address
        table, is_data = kinds[0], [isinstance(k, Data) for k in kinds]
        picked = picks.picked_axes(eqn, is_data)
        axes = picks.track(eqn, table.axes) if isinstance(table, Weight | Picked) else None
        if axes is not None and self.lookups is not None and address not in self.lookups and _can_pick(eqn):
            assert isinstance(table, Weight | Picked)
            gone = {axis for i in picked for axis, _ in table.axes[i]}
            ones = {i for i, n in enumerate(self.inventory.shapes[table.leaf]) if n == 1}
            left = {axis for atoms in axes for axis, _ in atoms if axis >= 0} - gone
            if len(left | ones) > 1:
                before = table.picks if isinstance(table, Picked) else frozenset()
                near = frozenset([self.inventory.leaves[table.leaf]])
                if self.recording:
                    self.inventory.picks |= {address}
                return Picked(near, makers=makers(kinds), leaf=table.leaf, axes=axes, picks=before | {address})
        if isinstance(table, Picked) and leaf_contraction(eqn, 0, table.axes, picked) is None:
            return combine(equation, self.settled(kinds))  # pyright: ignore[reportReturnType]
        return self.record(equation, [table, Data(makers=makers(kinds[1:]))], stack, picked)

    def weights_of(self, equation: Equation, kinds: Sequence[Kind]) -> list[Kind]:
        """Returns the kinds of a product's operands: what data picked is a weight where the other one is data."""
        is_picked = [isinstance(k, Picked) for k in kinds]
        others = [k for k, p in zip(kinds, is_picked, strict=True) if not p]
        if sum(is_picked) == 1 and isinstance(others[0], Data):
            at = is_picked.index(True)
            contracted = leaf_contraction(equation.eqn, at, kinds[at].axes)  # pyright: ignore[reportAttributeAccessIssue]
            if contracted:
                return list(kinds)
        return self.settled(kinds)

    def record(self, equation: Equation, kinds: list[Kind], stack: Stack, picked: tuple[int, ...] = ()) -> Data:
        left, right = (_at_operation(equation.eqn, i, kinds, picked) for i in range(2))
        pair = left, right
        weights = [k for k in pair if not isinstance(k, Data) or isinstance(k, Picked)]
        near = frozenset().union(*(k.near for k in pair if isinstance(k, Data)))
        if weights:
            base = self.weight_path(weights[0])
            near = frozenset([base])
        else:
            prefix = common_prefix(sorted(near))
            number = self.products.get(prefix, 0)
            base = f"{prefix}/dot_{number}" if prefix else f"dot_{number}"
            if self.recording:
                self.products[prefix] = number + 1
        if self.recording:
            self.inventory.operations.append(
                Operation(equation, base, pair, stack, equation.source, picked, self.own_gradient)
            )
        here = frozenset([equation.address])
        return Data(near, makers=here, drawn=here if picked else frozenset() if weights else drawn(pair))

    def weight_path(self, kind: Kind) -> str:
        if isinstance(kind, Weight | Picked):
            return self.inventory.leaves[kind.leaf]
        by_size = sorted(leaves_of(kind), key=lambda i: -self.inventory.sizes[i])
        paths = sorted(self.inventory.leaves[i] for i in by_size)
        if len(by_size) > 1 and self.inventory.sizes[by_size[0]] > self.inventory.sizes[by_size[1]]:
            return self.inventory.leaves[by_size[0]]
        if not paths:
            name = f"constant_{self.constants}"
            self.constants += self.recording
            return name
        return derived_path(paths)

    def _jit(self, equation: Equation, kinds: list[Kind], stack: Stack) -> list[Kind]:
        (body,) = equation.bodies
        return self.body(body, kinds, stack)

    _remat = _jit

    def _shard_map(self, equation: Equation, kinds: list[Kind], stack: Stack) -> list[Kind]:
        return [computed(k) for k in self.settled(self._jit(equation, kinds, stack))]

    def _custom_vjp(self, equation: Equation, kinds: list[Kind], stack: Stack) -> list[Kind]:
        before = self.own_gradient
        self.own_gradient = before or f"{equation.call} {equation.source}".strip()
        outs = self._shard_map(equation, kinds, stack)
        self.own_gradient = before
        return outs

    _custom_jvp = _custom_vjp

    def _cond(self, equation: Equation, kinds: list[Kind], stack: Stack) -> list[Kind]:
        branches = [self.body(body, kinds[1:], stack) for body in equation.bodies]
        outs = [computed(join(self.settled(options))) for options in zip(*branches, strict=True)]
        return left_behind(outs, is_data=isinstance(kinds[0], Data))

    def _while(self, equation: Equation, kinds: list[Kind], stack: Stack) -> list[Kind]:
        condition, body = equation.bodies
        n_carry = len(equation.outs)
        n_cond, n_body = len(condition.inputs) - n_carry, len(body.inputs) - n_carry
        unchanged = [out is x for out, x in zip(body.outs, body.inputs[n_body:], strict=True)]
        consts, carry = kinds[n_cond : n_cond + n_body], self.changing(kinds[n_cond + n_body :], unchanged)

        def once(carry: Sequence[Kind]) -> list[Kind]:
            return self.changing(self.body(body, [*consts, *carry], stack), unchanged)

        fixed = self._fixpoint(once, carry, unchanged)
        (goes_on,) = self.body(condition, [*kinds[:n_cond], *fixed], stack)
        once(fixed)
        outs = self._after(fixed, carry, kinds)
        chosen = left_behind(outs, is_data=isinstance(goes_on, Data))
        return [k if same else data for k, data, same in zip(outs, chosen, unchanged, strict=True)]

    def _scan(self, equation: Equation, kinds: list[Kind], stack: Stack) -> list[Kind]:
        loop = equation.loop
        assert loop is not None
        n_carry, n_consts = len(loop.carries), loop.n_consts
        unchanged = [out is x for out, x in zip(loop.afters, loop.carries, strict=True)]
        consts, xs = kinds[:n_consts], kinds[n_consts + n_carry :]
        carry = self.changing(kinds[n_consts : n_consts + n_carry], unchanged)
        is_layers = any(is_layered(k) for k in xs)
        if is_layers:
            stack = (*stack, loop.length)
            if self.recording:
                self.inventory.layer_scans.add(equation.address)
        # Of a scan over layers a derived weight is computed for every one of them; of another scan, once.
        layers = [layer_of(k) for k in xs]
        given = [k if k is not None else self.settled([x])[0] for k, x in zip(layers, xs, strict=True)]
        sliced = given if is_layers else [turning(k) for k in given]

        def once(carry: Sequence[Kind]) -> list[Kind]:
            outs = self.body(loop.body, [*consts, *carry, *sliced], stack)
            return [*self.changing(outs[:n_carry], unchanged), *self.settled(outs[n_carry:])]

        fixed = self._fixpoint(lambda c: once(c)[:n_carry], carry, unchanged, is_layers=is_layers)
        outs = once(fixed)
        stacked = [k if isinstance(k, Data) else Derived(leaves_of(k)) for k in outs[n_carry:]]
        return self._after([*fixed, *stacked], [*carry, *stacked], kinds)

    def _after(self, outs: Sequence[Kind], before: Sequence[Kind], kinds: Sequence[Kind]) -> list[Kind]:
        """What a loop leaves behind: computed once, if all that came in was."""
        inner = [k if isinstance(k, Data) else dataclasses.replace(k, varies=varies(kinds)) for k in outs]
        return [b if o == b else i for o, b, i in zip(outs, before, inner, strict=True)]

    def _fixpoint(
        self,
        once: Callable[[Sequence[Kind]], list[Kind]],
        carry: Sequence[Kind],
        unchanged: Sequence[bool],
        *,
        is_layers: bool = False,
    ) -> list[Kind]:
        """Joins the carry with what the body returns until nothing changes; nothing is recorded."""
        recording, self.recording = self.recording, False
        now = list(carry)
        while True:
            outs = once(now)
            after = [
                a if same else carried(a, b, is_layers=is_layers)
                for a, b, same in zip(now, outs, unchanged, strict=True)
            ]
            if after == now:
                break
            now = after
        self.recording = recording
        return now


def _can_pick(eqn: Eqn) -> bool:
    """Whether what is out of range, if anything, becomes NaN or the nearest: a weight's scale can say these."""
    fill = eqn.params.get("fill_value")
    return fill is None or math.isnan(fill) or eqn.params["mode"] != lax.GatherScatterMode.FILL_OR_DROP


def _at_operation(eqn, index: int, kinds: Sequence[Kind], picked: Sequence[int]) -> Kind:
    """The kind of an operand at its operation: a weight only where its contraction is whole leaf axes."""
    kind = kinds[index]
    if isinstance(kind, Weight) and leaf_contraction(eqn, index, kind.axes, picked) is None:
        return Derived(frozenset([kind.leaf]), kind.varies)
    return kind
