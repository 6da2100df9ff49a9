"""Which operations of a full-integer plan run on the native kernels of a CPU, and their weights there."""

import functools
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lowbit.core.checks import is_traced
from lowbit.core.meshes import explicit_mesh
from lowbit.core.spec import Spec
from lowbit.interpret.kernel_orders import Orders, TraceOf
from lowbit.interpret.prepared import apart
from lowbit.interpret.trace import Args, Kwargs, Model, Trace, trace_planned
from lowbit.packed import fixed_calls, native
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan
from lowbit.program.read import Value

from .compute import code_dtype
from .flat import Constants
from .joined import Joined
from .nodes import Node, Placement
from .ops import kind_named
from .ops.scan import Turns
from .plans import program_for
from .weights import weight_places

Native = Callable[..., Any]
"""From the codes of inputs to those of the result, or to a `Later`."""


class Later(NamedTuple):
    """The result of an operation that its only reader computes: a sum is part of the call that makes one of its operands.

    Attributes:
        node: the operation.
        codes: of its input.
    """

    node: Node
    codes: Any


class Grid(NamedTuple):
    """A value's: its scale, its zero point and its spec."""

    scale: Any
    zero: Any
    spec: Spec


def natives_of(program: Placement, orders: Orders, grid: Callable[[Value], Grid]) -> dict[str, Native]:
    """Returns what computes the nodes that run on the native kernels, by path.

    Args:
        program: the integer form.
        orders: of weights, and of sums.
        grid: of a value.
    """
    if not orders:
        return {}
    joins = _joins(program, frozenset(orders))
    late = {node.ins[at] for node, at in joins.values() if node.path in orders}

    def of(node: Node, codes: Any, join: fixed_calls.Join | None = None) -> Array:
        scale, zero, spec = grid(node.ins[0])
        floats = None
        if jnp.issubdtype(codes.dtype, jnp.floating):
            floats = fixed_calls.FloatGrid(scale, int(spec.format.low), int(spec.format.high))
        return fixed_calls.result(node.equations[0], codes, zero, orders[node.path], grid=floats, join=join)

    def joined(node: Node, at: int, *codes: Any) -> Array:
        own, other = codes[at], codes[1 - at]
        return of(own.node, own.codes, fixed_calls.Join(other, orders[node.path], node.kind))

    natives: dict[str, Native] = {}
    for node, _ in program.everywhere():
        if node.path in orders and node.path in joins:
            natives[node.path] = functools.partial(joined, *joins[node.path])
        elif node.path in orders:
            natives[node.path] = functools.partial(Later if node.out in late else of, node)
    return natives


def floats_of(program: Placement, orders: Orders, grid: Callable[[Value], Grid]) -> frozenset[Value]:
    """Returns the arguments that their only reader, an operation on the kernels, puts on their grid itself.

    Args:
        program: the integer form.
        orders: of weights, and of sums.
        grid: of a value.
    """
    read, alone = _read(program), set[Value]()
    for node in program.nodes:
        if node.op is None or node.path not in orders:
            continue
        (var,) = node.ins
        if read[var] == 1 and var.dtype == jnp.float32 and fixed_calls.takes_floats(node.equations[0], grid(var).spec):
            alone.add(var)
    return frozenset(node.out for node in program.nodes if node.kind == "input" and node.out in alone)


def _read(program: Placement) -> Counter[Value]:
    """How often a value is read."""
    places = program.everywhere()
    read = Counter(v for node, _ in places for v in node.ins)
    read.update(program.outs)
    for node, _ in places:
        if node.loop is not None:
            turns = node.known_as(Turns)
            read.update((*turns.afters, *turns.ys))
    return read


def _joins(program: Placement, paths: frozenset[str]) -> dict[str, tuple[Node, int]]:
    """Sums, maxima and minima that may be part of the call that makes an operand, and which of them, by path.

    It is read by nothing else, and of two the later one: what it is joined with is there when the sum is computed.

    Args:
        program: the integer form.
        paths: of the operations that run on the kernels.
    """
    read = _read(program)
    joins: dict[str, tuple[Node, int]] = {}
    for nodes in (program.nodes, *(node.body for node, _ in program.everywhere() if node.body)):
        order = {node.out: i for i, node in enumerate(nodes) if node.op is not None and node.path in paths}
        for node in nodes:
            if not isinstance(kind_named(node.kind), Joined):
                continue
            fits = [i for i, v in enumerate(node.ins) if v in order and read[v] == 1 and v.shape == node.out.shape]
            if fits and node.ins[0].shape == node.ins[1].shape:
                joins[node.path] = node, max(fits, key=lambda i: order[node.ins[i]])
    return joins


ON_MESH = "its arrays lie on an explicit mesh, and the kernels see one device's"
EVERY_TIME = "its weight is put into the kernels' order in every call: let the jitted function close over qparams"
FEW_ROWS = (
    "its weight is traced, and for few rows putting it into the kernels' order in every call costs more than it saves: let "
    "the jitted function close over qparams"
)

_FEWEST_ROWS = 64
"""Of a dot whose weight is put into the kernels' order in every call. 1024 x 1024 in 8 bits on AVX512-VNNI: with 32 rows
3.4 ms, and 3.0 in XLA; with 64 3.8 and 4.5; with 128 4.5 and 6.9. Convolutions gain at one image already."""


def orders_of(plan: Plan, traced: Trace, qparams: QParams) -> dict[str, Any]:
    """Returns the weights in the kernels' order, by operation, of those that the kernels can run.

    Args:
        plan: full-integer.
        traced: a call on the packed parameters.
        qparams: packed; of traced ones the weights are put into their order by operations of the program that is traced.
    """
    program, numbers, orders = program_for(plan, traced), qparams.sites, dict[str, Any]()
    for node, q, reason in _weights(plan, traced, qparams):
        if reason is None and not _is_left(node, q):
            zero = numbers[program.grids[node.ins[0]]]["zero"]
            orders[node.path] = fixed_calls.order_of(node.equations[0], q, numbers[node.path], zero, plan.rounding)
    for path, (node, at) in _joins(program, frozenset(orders)).items():
        grids = [program.grids[v] for v in (*node.ins, node.out)]
        if all(_is_short(plan, grid) for grid in grids) and fixed_calls.why_not_joined(numbers[path]) is None:
            zeros = [numbers[grid]["zero"] for grid in grids[:2]]
            orders[path] = fixed_calls.join_order({n: numbers[path][n] for n in fixed_calls.JOIN_NUMBERS}, zeros, at)
    return orders


def _is_left(node: Node, weight: Any) -> bool:
    """Whether an operation that the kernels could run is left to XLA, because its weight is traced and has few rows."""
    equation = node.equations[0]
    if equation.name != "dot_general" or not any(map(is_traced, jax.tree.leaves(weight))):
        return False
    free = math.prod(weight.shape[i] for i in fixed_calls.free_axes(equation))
    return math.prod(equation.outs[0].shape) < _FEWEST_ROWS * free


def _is_short(plan: Plan, grid: str) -> bool:
    """Whether the codes of a grid are int8."""
    spec = plan.grids()[grid].spec
    return spec is not None and code_dtype(spec) == jnp.int8


def reasons_of(plan: Plan, traced: Trace, qparams: QParams) -> dict[str, str]:
    """Returns why operations cannot run on the kernels, by path: arguments as `orders_of`, parameters traced or not."""
    if (reason := fixed_calls.status()) is not None:
        return {row.path: reason for row in plan.rows}
    weights = {node.path: reason for node, _, reason in _weights(plan, traced, qparams)}
    reasons = {row.path: weights.get(row.path, "both operands are computed") for row in plan.rows}
    return {path: reason for path, reason in reasons.items() if reason is not None}


def kernel_lines(
    plan: Plan, traced: Trace, qparams: QParams, orders: Orders, how: str, why: str, *, on_mesh: bool
) -> list[tuple[str, str, str]]:
    """Returns of every row its path, what runs it, and why no faster one.

    Args:
        plan: full-integer.
        traced: a call on the packed parameters.
        qparams: packed.
        orders: of the operations on the kernels.
        how: what runs the others.
        why: what to say of those.
        on_mesh: whether arrays lie on an explicit mesh.
    """
    reasons, left = reasons_of(plan, traced, qparams), ON_MESH if on_mesh else FEW_ROWS
    note = EVERY_TIME if any(map(is_traced, jax.tree.leaves(orders))) else ""
    return [
        (row.path, "cpu", note) if row.path in orders else (row.path, how, f"{reasons.get(row.path, left)}; {why}")
        for row in plan.rows
    ]


def _weights(plan: Plan, traced: Trace, qparams: QParams) -> Iterator[tuple[Node, Any, str | None]]:
    """The operations that have a weight, the weight, and why the kernels cannot run them."""
    program, numbers = program_for(plan, traced), qparams.sites
    known = Constants.of(program.flat, traced.leaves)
    for node, site, var in weight_places(plan, program):
        if not kind_named(node.kind).reads_grids:
            yield node, None, "a look-up of codes"
            continue
        q = (known.raw(var) if site.kind == "leaf" else qparams.sites[node.path]["weight"]).merged()
        if not all(_is_short(plan, program.grids[v]) for v in (node.ins[0], node.out)):
            yield node, q, "the kernels take and return codes of 8 bits or less"
        else:
            yield node, q, fixed_calls.why_not(node.equations[0], q, numbers[node.path])


class FixedOrders:
    """The weights of the last packed parameters in the kernels' order: `lowbit.interpret.kernel_orders.KernelOrders`."""

    advice = (
        "so that every call puts them there again, or runs dots of few rows in plain XLA, up to 40 times slower: let"
    )

    def __init__(self, fn: Model, plan: Plan):
        self.fn, self.plan = fn, plan
        self.sources: tuple[weakref.ref[Any], ...] = ()
        self.orders: dict[str, Any] = {}

    def platform(self, implementation: str | None, platform: str) -> str | None:
        """Returns ``"cpu"``, where nothing else is asked for: there are kernels of a CPU only."""
        is_asked = platform == "cpu" and implementation in (None, "cpu")
        return "cpu" if is_asked and native.status() is None and fixed_calls.status() is None else None

    def attached(self, qparams: QParams, orders: Orders) -> QParams:
        """Returns the parameters as they are: the orders are given beside them."""
        return qparams

    def on_cpu(self, trace_of: TraceOf, qparams: QParams, args: Any, kwargs: Any, orders: Orders) -> Any:
        """Returns one call's result, the operations that have an order on the kernels."""
        return trace_of(qparams, args, kwargs, where="cpu", is_fused=False, orders=orders)

    def read_alone(self, qparams: QParams, orders: Orders) -> list[bool]:
        """Returns which arrays native calls alone read: the orders; what is packed is read by other operations."""
        return [False] * len(jax.tree.leaves(qparams)) + [True] * len(jax.tree.leaves(orders))

    def unprepared(self, qparams: QParams, args: Args, kwargs: Kwargs) -> list[str]:
        """Returns the operations that the kernels can run, and whose weights they would have, were they not traced."""
        if explicit_mesh(jax.tree.leaves(qparams)) is not None:
            return []
        weights = _weights(self.plan, self._traced(qparams, args, kwargs), qparams)
        return [n.path for n, q, reason in weights if reason is None and any(map(is_traced, jax.tree.leaves(q)))]

    def _traced(self, qparams: QParams, args: Args, kwargs: Kwargs) -> Trace:
        return trace_planned(self.fn, self.plan, qparams.params, args, dict(kwargs))

    def __call__(self, qparams: QParams, args: Args, kwargs: Kwargs, platform: str) -> Orders:
        """Returns the orders, made anew in every call where parameters are traced; none where they lie on an explicit mesh."""
        arrays = jax.tree.leaves(qparams)
        if explicit_mesh(arrays) is not None:
            return {}
        if any(is_traced(x) for x in arrays):
            return orders_of(self.plan, self._traced(qparams, args, kwargs), qparams)
        is_known = 0 < len(self.sources) == len(arrays)
        if is_known and all(ref() is x for ref, x in zip(self.sources, arrays, strict=True)):
            return self.orders
        traced = self._traced(qparams, args, kwargs)
        with jax.ensure_compile_time_eval():  # at once, also while another function is traced
            orders = apart(orders_of(self.plan, traced, qparams), arrays)
        self.sources, self.orders = (), {}
        if all(isinstance(x, jax.Array) for x in arrays):
            me = weakref.ref(self)

            def forget(dead: Any) -> None:
                if (memo := me()) is not None and any(ref is dead for ref in memo.sources):
                    memo.sources, memo.orders = (), {}

            self.sources, self.orders = tuple(weakref.ref(x, forget) for x in arrays), orders
        return orders
