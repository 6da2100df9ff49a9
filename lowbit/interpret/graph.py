"""Reading a jaxpr: which equations are operations, and which operand of each is a weight. By data flow, never by shape.

Every variable is followed as one of three kinds. `Weight`: a parameter leaf that has only been moved. `Derived`:
computed from parameters and constants alone. `Data`: everything that depends on the arguments.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from lowbit.core.paths import common_prefix
from lowbit.program import compat, primitives

from . import moves

Address = tuple[int, ...]
"""Where an equation is: equation index, body index, equation index, ..., equation index."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """A parameter leaf, moved. ``axes`` says where its axes are now."""

    leaf: int
    axes: moves.Axes


@dataclasses.dataclass(frozen=True)
class Derived:
    """A value computed from these leaves (none: from constants alone)."""

    leaves: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class Data:
    """A value that depends on the arguments.

    Attributes:
        near: paths of the nearest upstream weights.
        is_mixed: whether a whole parameter was combined with it since the last operation.
        is_spread: whether it was broadcast since the last operation.
    """

    near: frozenset[str] = frozenset()
    is_mixed: bool = False
    is_spread: bool = False


Kind = Weight | Derived | Data


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
        path: unique name.
    """

    address: Address
    eqn: Any
    base: str
    kinds: tuple[Kind, Kind]
    stack: tuple[int, ...]
    source: str
    path: str = ""


@dataclasses.dataclass
class Graph:
    """What `read` found. Plain data, made once per trace.

    Attributes:
        operations: in program order.
        layer_scans: addresses of scans over stacked parameters; their sites have a state per layer.
        unseen: ``(primitive, source line)`` of primitives that may hide a matmul.
        leaves: the paths of the parameter leaves.
        sizes: their elements.
    """

    leaves: list[str]
    operations: list[Operation] = dataclasses.field(default_factory=list)
    layer_scans: set[Address] = dataclasses.field(default_factory=set)
    unseen: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)

    @property
    def by_address(self) -> dict[Address, Operation]:
        """The operations by where they are."""
        return {op.address: op for op in self.operations}


def read(jaxpr: Any, leaf_paths: Sequence[str], leaf_shapes: Sequence[tuple[int, ...]]) -> Graph:
    """Returns the operations of a closed jaxpr whose first inputs are the parameter leaves.

    Args:
        jaxpr: a closed jaxpr.
        leaf_paths: the paths of the leaves.
        leaf_shapes: their shapes.
    """
    graph = Graph(leaves=list(leaf_paths), sizes=[math.prod(shape) for shape in leaf_shapes])
    kinds: list[Kind] = [Weight(i, moves.leaf_axes(shape)) for i, shape in enumerate(leaf_shapes)]
    kinds += [Data()] * (len(jaxpr.jaxpr.invars) - len(kinds))
    _Reader(graph).body(jaxpr.jaxpr, [Derived()] * len(jaxpr.consts), kinds, (), ())
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
    """The walk: pushes kinds through equations, records operations when ``recording``."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.recording = True
        self.products: dict[str, int] = {}
        self.constants = 0
        self.caller = ""

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
        if name in primitives.PRODUCTS and any(isinstance(k, Data) for k in kinds):
            return [self.record(eqn, kinds, address, stack)]
        if name == "gather" and isinstance(kinds[0], Weight) and isinstance(kinds[1], Data) and _is_lookup(eqn):
            return [self.record(eqn, kinds, address, stack)]
        if isinstance(kinds[0] if kinds else None, Weight):
            axes = moves.track(eqn, kinds[0].axes)  # pyright: ignore[reportAttributeAccessIssue]
            if axes is not None:
                return [Weight(kinds[0].leaf, axes)]  # pyright: ignore[reportAttributeAccessIssue]
        joined = _combine(eqn, kinds)
        return [joined] * len(eqn.outvars)

    def record(self, eqn, kinds: list[Kind], address: Address, stack) -> Data:
        pair = tuple(_at_operation(eqn, i, kinds) for i in range(2))
        weights = [k for k in pair if not isinstance(k, Data)]
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
            self.graph.operations.append(Operation(address, eqn, base, pair, stack, source))  # pyright: ignore[reportArgumentType]
        return Data(near)

    def weight_path(self, kind: Kind) -> str:
        if isinstance(kind, Weight):
            return self.graph.leaves[kind.leaf]
        by_size = sorted(_leaves(kind), key=lambda i: -self.graph.sizes[i])
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

    _remat = _custom_jvp = _custom_vjp = _shard_map = _jit

    def _cond(self, eqn, kinds, address, stack):
        branches = [
            self.body(b.jaxpr, [Derived()] * len(b.consts), kinds[1:], (*address, i), stack)
            for i, b in enumerate(compat.bodies(eqn))
        ]
        outs = [_join(options) for options in zip(*branches, strict=True)]
        if isinstance(kinds[0], Data):
            outs = [o if isinstance(o, Data) else Data(is_mixed=bool(_leaves(o))) for o in outs]
        return outs

    def _while(self, eqn, kinds, address, stack):
        condition, body = compat.bodies(eqn)
        split = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
        consts, carry = kinds[split[0] : split[1]], kinds[split[1] :]

        def once(carry, scope):
            return self.body(body.jaxpr, [Derived()] * len(body.consts), [*consts, *carry], scope, stack)

        fixed = self._fixpoint(lambda c: once(c, ()), carry, _unchanged(body.jaxpr, len(consts), len(carry)))
        self.body(
            condition.jaxpr, [Derived()] * len(condition.consts), [*kinds[: split[0]], *fixed], (*address, 0), stack
        )
        once(fixed, (*address, 1))
        return fixed

    def _scan(self, eqn, kinds, address, stack):
        (body,) = compat.bodies(eqn)
        n_consts, n_carry = compat.scan_counts(eqn)
        consts, carry, xs = kinds[:n_consts], kinds[n_consts : n_consts + n_carry], kinds[n_consts + n_carry :]
        is_layers = any(not isinstance(k, Data) and _leaves(k) for k in xs)
        if is_layers:
            stack = (*stack, eqn.params["length"])
            if self.recording:
                self.graph.layer_scans.add(address)
        sliced = [_layer(k) for k in xs]

        def once(carry, scope):
            return self.body(body.jaxpr, [Derived()] * len(body.consts), [*consts, *carry, *sliced], scope, stack)

        unchanged = _unchanged(body.jaxpr, n_consts, n_carry)
        fixed = self._fixpoint(lambda c: once(c, ())[:n_carry], carry, unchanged)
        outs = once(fixed, (*address, 0))
        stacked = [k if isinstance(k, Data) else Derived(_leaves(k)) for k in outs[n_carry:]]
        return [*fixed, *stacked]

    def _fixpoint(self, once, carry: Sequence[Kind], unchanged: Sequence[bool]) -> list[Kind]:
        """Joins the carry with what the body returns until nothing changes; nothing is recorded."""
        recording, self.recording = self.recording, False
        now = list(carry)
        while True:
            outs = once(now)
            after = [a if same else _carried(a, b) for a, b, same in zip(now, outs, unchanged, strict=True)]
            if after == now:
                break
            now = after
        self.recording = recording
        return now


def _unchanged(jaxpr, n_consts: int, n_carry: int) -> list[bool]:
    return [jaxpr.outvars[i] is jaxpr.invars[n_consts + i] for i in range(n_carry)]


def _carried(before: Kind, after: Kind) -> Kind:
    if isinstance(before, Data) or isinstance(after, Data):
        return _join([before, after])
    return Derived(_leaves(before) | _leaves(after))


def _leaves(kind: Kind) -> frozenset[int]:
    if isinstance(kind, Weight):
        return frozenset([kind.leaf])
    return kind.leaves if isinstance(kind, Derived) else frozenset()


def _layer(kind: Kind) -> Kind:
    """The kind of one slice of a scanned operand."""
    if isinstance(kind, Weight):
        first, rest = (kind.axes[0], kind.axes[1:]) if kind.axes else ((), ())
        later = {axis for group in rest for axis, _ in group}
        leads = len(first) == 1 and all(first[0][0] < axis for axis in later)
        return Weight(kind.leaf, rest) if leads else Derived(frozenset([kind.leaf]))
    return kind


def _join(options: Sequence[Kind]) -> Kind:
    if all(k == options[0] for k in options):
        return options[0]
    if any(isinstance(k, Data) for k in options):
        data = [k for k in options if isinstance(k, Data)]
        return Data(frozenset().union(*(k.near for k in data)), any(k.is_mixed for k in data))
    return Derived(frozenset().union(*(_leaves(k) for k in options)))


def _combine(eqn, kinds: Sequence[Kind]) -> Kind:
    """The kind of an equation's results from the kinds of its operands."""
    data = [k for k in kinds if isinstance(k, Data)]
    if not data:
        return Derived(frozenset().union(*(_leaves(k) for k in kinds)))
    near = frozenset().union(*(k.near for k in data))
    mixed = any(k.is_mixed for k in data)
    spread = any(k.is_spread for k in data)
    name = eqn.primitive.name
    out = eqn.outvars[0].aval.shape if hasattr(eqn.outvars[0].aval, "shape") else ()
    if name == "broadcast_in_dim" and eqn.invars[0].aval.shape != out:
        spread = spread or is_smaller(eqn.invars[0].aval.shape, out)
    whole = [
        k
        for k, v in zip(kinds, eqn.invars, strict=True)
        if not isinstance(k, Data) and _leaves(k) and v.aval.shape == out and sum(n > 1 for n in out) >= 2
    ]
    fewer = any(
        isinstance(k, Data) and is_smaller(getattr(v.aval, "shape", ()), out)
        for k, v in zip(kinds, eqn.invars, strict=True)
    )
    if whole and name in ("mul", "add", "sub", "div", "select_n", "max", "min") and (spread or fewer):
        mixed = True
    if name == "gather" and any(_leaves(k) for k in kinds):
        mixed = mixed or not _is_lookup(eqn)
    return Data(near, mixed, spread)


def is_smaller(shape: Sequence[Any], full: Sequence[Any]) -> bool:
    """Returns whether a shape that broadcasts to another has fewer elements; dimensions may be symbolic."""
    return [n for n in shape if n != 1] != [n for n in full if n != 1]


def _size(var) -> int:
    size = 1
    for n in getattr(var.aval, "shape", ()):
        size *= n
    return size


def _is_lookup(eqn) -> bool:
    """Whether a gather reads whole rows along one axis at several indices: an embedding."""
    numbers = eqn.params["dimension_numbers"]
    shape, sizes = eqn.invars[0].aval.shape, eqn.params["slice_sizes"]
    collapsed = numbers.collapsed_slice_dims
    if len(collapsed) != 1 or numbers.start_index_map != collapsed or getattr(numbers, "operand_batching_dims", ()):
        return False
    whole = all(size == n for i, (size, n) in enumerate(zip(sizes, shape, strict=True)) if i != collapsed[0])
    return whole and _size(eqn.invars[1]) > 1


def _at_operation(eqn, index: int, kinds: Sequence[Kind]) -> Kind:
    """The kind of an operand at its operation: a weight only where its contraction is whole leaf axes."""
    kind = kinds[index]
    if isinstance(kind, Weight) and leaf_contraction(eqn, index, kind) is None:
        return Derived(frozenset([kind.leaf]))
    return kind


def contraction(eqn: Any, index: int) -> tuple[int, ...]:
    """Returns the contracted axes of operand ``index`` of an operation, in the operand's own order."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return tuple(sorted(params["dimension_numbers"][0][index]))
    if name == "gather":
        collapsed = params["dimension_numbers"].collapsed_slice_dims
        return tuple(i for i in range(len(eqn.invars[0].aval.shape)) if i not in collapsed) if index == 0 else ()
    numbers = params["dimension_numbers"]
    spec = numbers.lhs_spec if index == 0 else numbers.rhs_spec
    return tuple(sorted(spec[1:]))


def leaf_contraction(eqn: Any, index: int, weight: Weight) -> tuple[int, ...] | None:
    """Returns the contracted axes in leaf coordinates, or None where a leaf axis is contracted only in part."""
    contracted = set(contraction(eqn, index))
    inside = {axis for i in contracted for axis, _ in weight.axes[i]}
    outside = {axis for i, atoms in enumerate(weight.axes) if i not in contracted for axis, _ in atoms}
    return None if inside & outside else tuple(sorted(inside))


def derived_path(paths: Sequence[str]) -> str:
    """Returns the path of a weight computed from leaves of one size: what they share, the differences joined by ``+``.

    Example:
        >>> derived_path(["cell/ii/kernel", "cell/if/kernel"])
        'cell/ii+if/kernel'
    """
    if len(paths) == 1:
        return paths[0]
    split = [p.split("/") for p in paths]
    prefix = common_prefix(paths).split("/") if common_prefix(paths) else []
    rest = [s[len(prefix) :] for s in split]
    suffix: list[str] = []
    while all(len(r) > 1 for r in rest) and len({r[-1] for r in rest}) == 1:
        suffix.insert(0, rest[0][-1])
        rest = [r[:-1] for r in rest]
    middle = "+".join("/".join(r) for r in rest)
    return "/".join([*prefix, middle, *suffix])
