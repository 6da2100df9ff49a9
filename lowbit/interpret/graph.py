"""Reading a jaxpr: which equations are operations, and which operand of each is a weight. By data flow, never by shape."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jax import lax

from lowbit.core.paths import common_prefix, derived_path

from . import compat, moves, picks
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
    join,
    layer_of,
    leaf_contraction,
    leaves_of,
    left_behind,
    turning,
    varies,
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One matmul, convolution or embedding look-up, as found.

    Attributes:
        address: where it is.
        eqn: the equation.
        base: the path without ``@0``; `path` adds it.
        kinds: the kind of either operand.
        stack: lengths of the enclosing scans over layers.
        source: where it was written, or, where a traced body does not say, where the call of it was.
        picked: of a look-up, the axes of its table that it picks from.
        path: unique name.
    """

    address: Address
    eqn: Any
    base: str
    kinds: tuple[Kind, Kind]
    stack: tuple[int, ...]
    source: str
    picked: tuple[int, ...] = ()
    path: str = ""

    @property
    def is_lookup(self) -> bool:
        """Whether it picks parts of its left operand."""
        return self.eqn.primitive.name in picks.LOOKUPS

    @property
    def weight(self) -> int | None:
        """Which operand is the weight; None where both depend on data."""
        is_weight = [not isinstance(kind, Data) or isinstance(kind, Picked) for kind in self.kinds]
        return is_weight.index(True) if any(is_weight) else None

    @property
    def primitive(self) -> str:
        """The primitive's name; a look-up is a ``gather``, also where one index made it a dynamic slice."""
        return "gather" if self.is_lookup else self.eqn.primitive.name

    def operands(self, values: Sequence[Any]) -> list[Any]:
        """Returns the two operands from those of the equation: all indices of a look-up are one."""
        return [values[0], tuple(values[1:])] if self.is_lookup else list(values)

    def rebind(self, operands: Sequence[Any]) -> Any:
        """Returns the equation's result on two operands, which are arrays."""
        left, right = operands
        return compat.rebind(self.eqn, [left, *right] if self.is_lookup else [left, right])[0]


@dataclasses.dataclass
class Graph:
    """What `read` found. Plain data, made once per trace.

    Attributes:
        operations: in program order.
        layer_scans: addresses of scans over stacked parameters; their sites have a state per layer.
        unseen: ``(primitive, source line)`` of primitives that may hide a matmul.
        leaves: the paths of the parameter leaves.
        sizes: their elements.
        shapes: their shapes.
        picks: addresses of look-ups that only move a weight, to the operation that takes what they pick as one.
        uses: by leaf, the primitives that compute with it, in order.
    """

    leaves: list[str]
    operations: list[Operation] = dataclasses.field(default_factory=list)
    layer_scans: set[Address] = dataclasses.field(default_factory=set)
    unseen: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    shapes: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    picks: frozenset[Address] = frozenset()
    uses: dict[int, dict[str, None]] = dataclasses.field(default_factory=dict)

    @property
    def by_address(self) -> dict[Address, Operation]:
        """The operations by where they are."""
        return {op.address: op for op in self.operations}


def read(
    jaxpr: Any, leaf_paths: Sequence[str], leaf_shapes: Sequence[tuple[int, ...]], *, has_picks: bool = True
) -> Graph:
    """Returns the operations of a closed jaxpr whose first inputs are the parameter leaves.

    Args:
        jaxpr: a closed jaxpr.
        leaf_paths: the paths of the leaves.
        leaf_shapes: their shapes.
        has_picks: whether a matrix that data picks stays a weight where an operation takes it as one; else every look-up is
            an operation.
    """
    made: frozenset[Address] | None = frozenset() if has_picks else None
    while True:
        graph = Graph(list(leaf_paths), sizes=[math.prod(s) for s in leaf_shapes], shapes=list(leaf_shapes))
        reader = _Reader(graph, made)
        reader.whole(jaxpr)
        if made is None or reader.made <= made:
            break
        made |= reader.made  # what something else than an operation reads: read again, with a look-up there
    counts: dict[str, int] = {}
    for op in graph.operations:
        counts[op.base] = counts.get(op.base, 0) + 1
    seen: dict[str, int] = {}
    named = []
    for op in graph.operations:
        number = seen.get(op.base, 0)
        seen[op.base] = number + 1
        path = op.base if counts[op.base] == 1 else f"{op.base}@{number}"
        named.append(dataclasses.replace(op, path=path))
    graph.operations = named
    return graph


class _Reader:
    """The walk: pushes kinds through equations, records operations when ``recording``.

    Args:
        graph: what is found goes there.
        lookups: where look-ups are operations whoever reads them; None: everywhere.
    """

    def __init__(self, graph: Graph, lookups: frozenset[Address] | None):
        self.graph = graph
        self.lookups = lookups
        self.made: set[Address] = set()  # picked, and then read by something that takes no weight
        self.recording = True
        self.products: dict[str, int] = {}
        self.constants = 0
        self.caller = ""

    def whole(self, jaxpr: Any) -> None:
        """Reads a closed jaxpr."""
        shapes = self.graph.shapes
        kinds: list[Kind] = [Weight(i, moves.leaf_axes(shape)) for i, shape in enumerate(shapes)]
        kinds += [Data()] * (len(jaxpr.jaxpr.invars) - len(kinds))
        outs = self.body(jaxpr.jaxpr, [Derived()] * len(jaxpr.consts), kinds, (), ())
        self.settled(outs)
        for leaf in frozenset().union(*(leaves_of(k) for k in outs)):
            self.graph.uses.setdefault(leaf, {})["the result"] = None

    def body(self, jaxpr, consts: Sequence[Kind], kinds: Sequence[Kind], scope: Address, stack) -> list[Kind]:
        env: dict[Any, Kind] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, kinds, strict=True))

        def get(var) -> Kind:
            return Derived() if compat.is_literal(var) else env[var]

        for index, eqn in enumerate(jaxpr.eqns):
            outs = self.equation(eqn, [get(v) for v in eqn.invars], (*scope, index), stack)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [get(v) for v in jaxpr.outvars]

    def equation(self, eqn, kinds: list[Kind], address: Address, stack) -> list[Kind]:
        what = compat.kind(eqn)
        if what is not None:
            before, self.caller = self.caller, compat.source_line(eqn) or self.caller
            outs = getattr(self, "_" + what)(eqn, kinds, address, stack)
            self.caller = before
            return outs
        name = eqn.primitive.name
        if compat.is_unseen(eqn) and self.recording:
            self.graph.unseen.append((name, compat.source_line(eqn) or self.caller))
        if name in compat.MATMULS and any(isinstance(k, Data) for k in kinds):
            return [self.record(eqn, self.weights_of(eqn, kinds), address, stack)]
        if name in picks.LOOKUPS and any(isinstance(k, Data) for k in kinds[1:]) and self.is_table(kinds[0]):
            return [self.lookup(eqn, kinds, address, stack)]
        first = kinds[0] if kinds else None
        if isinstance(first, Weight | Picked):
            axes = moves.track(eqn, first.axes)
            if axes is not None and isinstance(first, Picked):
                return [dataclasses.replace(first, axes=axes)]
            if axes is not None:
                return [Weight(first.leaf, axes, varies(kinds))]
        kinds = self.settled(kinds)
        self.use(eqn, kinds)
        return [combine(eqn, kinds)] * len(eqn.outvars)

    def use(self, eqn, kinds: Sequence[Kind]) -> None:
        """Notes which leaves an equation computes with: those moved there, and any that meet data."""
        if not self.recording:
            return
        has_data = any(isinstance(k, Data) for k in kinds)
        if not has_data and eqn.primitive.name in moves.NAMES:
            return
        for kind in kinds:
            for leaf in leaves_of(kind) if has_data or isinstance(kind, Weight) else ():
                self.graph.uses.setdefault(leaf, {})[
                    f"{eqn.primitive.name} {compat.source_line(eqn) or self.caller}".strip()
                ] = None

    def settled(self, kinds: Sequence[Kind]) -> list[Kind]:
        """Returns kinds as something other than an operation reads them: what was picked is data of a look-up."""
        if self.recording:
            self.made |= frozenset().union(*(k.picks for k in kinds if isinstance(k, Picked)))
        return [Data(k.near) if isinstance(k, Picked) else k for k in kinds]

    def is_table(self, kind: Kind) -> bool:
        return isinstance(kind, Picked) or bool(leaves_of(kind))

    def lookup(self, eqn, kinds: list[Kind], address: Address, stack) -> Data:
        """A look-up: of matrices, that an operation may take as its weight, it is put off."""
        table, is_data = kinds[0], [isinstance(k, Data) for k in kinds]
        picked = picks.picked_axes(eqn, is_data)
        axes = picks.track(eqn, table.axes) if isinstance(table, Weight | Picked) else None
        if axes is not None and self.lookups is not None and address not in self.lookups and _can_pick(eqn):
            assert isinstance(table, Weight | Picked)
            gone = {axis for i in picked for axis, _ in table.axes[i]}
            ones = {i for i, n in enumerate(self.graph.shapes[table.leaf]) if n == 1}
            left = {axis for atoms in axes for axis, _ in atoms if axis >= 0} - gone
            if len(left | ones) > 1:
                before = table.picks if isinstance(table, Picked) else frozenset()
                near = frozenset([self.graph.leaves[table.leaf]])
                if self.recording:
                    self.graph.picks |= {address}
                return Picked(near, leaf=table.leaf, axes=axes, picks=before | {address})
        if isinstance(table, Picked) and leaf_contraction(eqn, 0, table.axes, picked) is None:
            return combine(eqn, self.settled(kinds))  # pyright: ignore[reportReturnType]
        return self.record(eqn, [table, Data()], address, stack, picked)

    def weights_of(self, eqn, kinds: Sequence[Kind]) -> list[Kind]:
        """Returns the kinds of a product's operands: what data picked is a weight where the other one is data."""
        is_picked = [isinstance(k, Picked) for k in kinds]
        others = [k for k, p in zip(kinds, is_picked, strict=True) if not p]
        if sum(is_picked) == 1 and isinstance(others[0], Data):
            at = is_picked.index(True)
            contracted = leaf_contraction(eqn, at, kinds[at].axes)  # pyright: ignore[reportAttributeAccessIssue]
            if contracted:
                return list(kinds)
        return self.settled(kinds)

    def record(self, eqn, kinds: list[Kind], address: Address, stack, picked: tuple[int, ...] = ()) -> Data:
        pair = tuple(_at_operation(eqn, i, kinds, picked) for i in range(2))
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
            source = compat.source_line(eqn) or self.caller
            self.graph.operations.append(Operation(address, eqn, base, pair, stack, source, picked))  # pyright: ignore[reportArgumentType]
        return Data(near)

    def weight_path(self, kind: Kind) -> str:
        if isinstance(kind, Weight | Picked):
            return self.graph.leaves[kind.leaf]
        by_size = sorted(leaves_of(kind), key=lambda i: -self.graph.sizes[i])
        paths = sorted(self.graph.leaves[i] for i in by_size)
        if len(by_size) > 1 and self.graph.sizes[by_size[0]] > self.graph.sizes[by_size[1]]:
            return self.graph.leaves[by_size[0]]
        if not paths:
            name = f"constant_{self.constants}"
            self.constants += self.recording
            return name
        return derived_path(paths)

    def _jit(self, eqn, kinds, address, stack):
        (body,) = compat.bodies(eqn)
        return self.body(body.jaxpr, [Derived()] * len(body.consts), kinds, (*address, 0), stack)

    _remat = _jit

    def _custom_vjp(self, eqn, kinds, address, stack):
        outs = self.settled(self._jit(eqn, self.settled(kinds), address, stack))
        return [computed(k) for k in outs]

    _custom_jvp = _shard_map = _custom_vjp

    def _cond(self, eqn, kinds, address, stack):
        branches = [
            self.body(b.jaxpr, [Derived()] * len(b.consts), kinds[1:], (*address, i), stack)
            for i, b in enumerate(compat.bodies(eqn))
        ]
        outs = [computed(join(self.settled(options))) for options in zip(*branches, strict=True)]
        return left_behind(outs, is_data=isinstance(kinds[0], Data))

    def _while(self, eqn, kinds, address, stack):
        condition, body = compat.bodies(eqn)
        split = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
        consts, carry = kinds[split[0] : split[1]], self.settled(kinds[split[1] :])

        def once(carry, scope):
            return self.settled(self.body(body.jaxpr, [Derived()] * len(body.consts), [*consts, *carry], scope, stack))

        unchanged = _unchanged(body.jaxpr, len(consts), len(carry))
        fixed = self._fixpoint(lambda c: once(c, ()), carry, unchanged)
        (goes_on,) = self.body(
            condition.jaxpr, [Derived()] * len(condition.consts), [*kinds[: split[0]], *fixed], (*address, 0), stack
        )
        once(fixed, (*address, 1))
        outs = self._after(fixed, carry, kinds)
        chosen = left_behind(outs, is_data=isinstance(goes_on, Data))
        return [k if same else data for k, data, same in zip(outs, chosen, unchanged, strict=True)]

    def _scan(self, eqn, kinds, address, stack):
        (body,) = compat.bodies(eqn)
        n_consts, n_carry = compat.scan_counts(eqn)
        consts, rest = kinds[:n_consts], self.settled(kinds[n_consts:])
        carry, xs = rest[:n_carry], rest[n_carry:]
        is_layers = any(not isinstance(k, Data) and leaves_of(k) for k in xs)
        if is_layers:
            stack = (*stack, eqn.params["length"])
            if self.recording:
                self.graph.layer_scans.add(address)
        # Of a scan over layers a derived weight is computed for every one of them; of another scan, once.
        sliced = [layer_of(k) if is_layers else turning(layer_of(k)) for k in xs]

        def once(carry, scope):
            return self.settled(
                self.body(body.jaxpr, [Derived()] * len(body.consts), [*consts, *carry, *sliced], scope, stack)
            )

        unchanged = _unchanged(body.jaxpr, n_consts, n_carry)
        fixed = self._fixpoint(lambda c: once(c, ())[:n_carry], carry, unchanged, is_layers=is_layers)
        outs = once(fixed, (*address, 0))
        stacked = [k if isinstance(k, Data) else Derived(leaves_of(k)) for k in outs[n_carry:]]
        return self._after([*fixed, *stacked], [*carry, *stacked], kinds)

    def _after(self, outs: Sequence[Kind], before: Sequence[Kind], kinds: Sequence[Kind]) -> list[Kind]:
        """What a loop leaves behind: computed once, if all that came in was."""
        inner = [k if isinstance(k, Data) else dataclasses.replace(k, varies=varies(kinds)) for k in outs]
        return [b if o == b else i for o, b, i in zip(outs, before, inner, strict=True)]

    def _fixpoint(
        self, once, carry: Sequence[Kind], unchanged: Sequence[bool], *, is_layers: bool = False
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


def _can_pick(eqn: Any) -> bool:
    """Whether what is out of range, if anything, becomes NaN or the nearest: a weight's scale can say these."""
    fill = eqn.params.get("fill_value")
    return fill is None or math.isnan(fill) or eqn.params["mode"] != lax.GatherScatterMode.FILL_OR_DROP


def _at_operation(eqn, index: int, kinds: Sequence[Kind], picked: Sequence[int]) -> Kind:
    """The kind of an operand at its operation: a weight only where its contraction is whole leaf axes."""
    kind = kinds[index]
    if isinstance(kind, Weight) and leaf_contraction(eqn, index, kind.axes, picked) is None:
        return Derived(frozenset([kind.leaf]), kind.varies)
    return kind


def _unchanged(jaxpr, n_consts: int, n_carry: int) -> list[bool]:
    return [jaxpr.outvars[i] is jaxpr.invars[n_consts + i] for i in range(n_carry)]
