"""One evaluator of integer programs, for every interpretation: what happens at a node is a function."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import cast_once, rounded_product
from lowbit.core.spec import Spec
from lowbit.interpret.trace import Trace
from lowbit.program import compat
from lowbit.program.read import Equation, Value

from .fixed import Rounding
from .flat import Constants
from .kind import Taken
from .nodes import Node, Placement
from .ops import kind_named
from .ops.scan import Turns
from .own_gradients import called

AtNode = Callable[[Node, list[Any], Any], tuple[list[Any], Any]]
"""``(node, what it reads, state) -> (what it makes, state)``."""


class Levels(NamedTuple):
    """A value on a grid, differentiable: what simulation carries between nodes.

    Attributes:
        levels: integers in float32.
        scale: of the grid, a scalar.
        zero: zero point, a scalar.
    """

    levels: Array
    scale: Array
    zero: Array

    def dequantize(self, dtype: DTypeLike) -> Array:
        """Returns the value."""
        return cast_once(rounded_product(self.levels - self.zero, self.scale), dtype)


def data_of(program: Placement, traced: Trace) -> dict[Value, Any]:
    """Returns the arguments of a call, by what they are in the program."""
    flat = program.flat
    return dict(zip(flat.inputs[flat.count :], traced.leaves[flat.count :], strict=True))


def results(
    program: Placement,
    traced: Trace,
    known: Constants,
    compute: Callable[[Node, list[Any]], list[Any]],
    enter: Callable[[Value, Any], Any],
    leave: Callable[[Value, Any], Any],
) -> list[Any]:
    """Returns the flat results of a call.

    Args:
        program: the integer form.
        traced: of the call.
        known: the values of what is not data.
        compute: ``(node, what it reads) -> what it makes``, of every node but inputs.
        enter: ``(argument, its value) -> what nodes read``.
        leave: ``(result, what its node made) -> its value``.
    """
    env = data_of(program, traced)

    def at(node: Node, values: list[Any], state: Any) -> tuple[list[Any], Any]:
        return [enter(node.out, env[node.out])] if node.kind == "input" else compute(node, values), state

    evaluate(program.nodes, env, at, (), known.value)
    return [leave(v, env[v]) for v in program.outs]


AtScan = Callable[[Node, list[Any], Any], Any]
"""``(scan, what it carries at first and then at last, state) -> state``."""


def evaluate(
    nodes: Sequence[Node],
    env: dict[Value, Any],
    at: AtNode,
    state: Any,
    get: Callable[[Value], Any],
    after_scan: AtScan | None = None,
) -> Any:
    """Adds what the nodes make to ``env`` and returns the state after them. Scans carry the state.

    Integers without a grid are the same for every interpretation: they are computed here.

    Args:
        nodes: in order.
        env: values; those of `lowbit.program.read.Program.inputs` and of outer loops are in it.
        at: what to do at a node on a grid that is no scan.
        state: given to ``at`` and taken from it.
        get: the values of what is not data.
        after_scan: what to do after a scan.
    """
    for node in nodes:
        if node.kind == "scan":
            state = _scan(node, env, at, state, get, after_scan)
            continue
        if node.kind == "index":
            env.update(zip(node.outs, indices(node, env, get), strict=True))
            continue
        outs, state = at(node, [env[v] for v in node.ins], state)
        env.update(zip(node.outs, outs, strict=True))
    return state


def _scan(
    node: Node, env: dict[Value, Any], at: AtNode, state: Any, get: Callable[[Value], Any], after_scan: AtScan | None
) -> Any:
    turns, loop = node.known_as(Turns), node.loop
    assert loop is not None
    count = turns.count
    inits, xs = [env[v] for v in node.ins[:count]], [env[v] for v in node.ins[count:]]

    def turn(carry: Any, slices: Any) -> tuple[Any, Any]:
        values, state = carry
        inner = {**env, **dict(zip(turns.carries, values, strict=True))}
        inner |= {
            v: x._replace(levels=part) if isinstance(x, Levels) else part
            for v, x, part in zip(loop.slices, xs, slices, strict=True)
        }
        state = evaluate(node.body, inner, at, state, get, after_scan)
        return ([inner[v] for v in turns.afters], state), [inner[v] for v in turns.ys]

    scanned = [x.levels if isinstance(x, Levels) else x for x in xs]
    (values, state), ys = compat.scan(node.equations[0].eqn, turn, (inits, state), scanned)
    ys = [Levels(y.levels, y.scale[0], y.zero[0]) if isinstance(y, Levels) else y for y in ys]
    env.update(zip(node.outs, (*values, *ys), strict=True))
    return state if after_scan is None else after_scan(node, [*inits, *xs, *values, *xs], state)


def defined(node: Node, values: Sequence[Any], get: Callable[[Value], Any]) -> list[Any]:
    """Returns a node's results in float, by its equations; ``get`` has the values of what is not data."""
    if not node.equations:
        return [get(v) for v in node.details.values]
    env: dict[Value, Any] = dict(zip(node.ins, values, strict=True))
    for equation in node.equations:
        if all(v in env for v in equation.outs):
            continue
        env |= called(node, equation, env, get)
        operands = [env[v] if v in env else get(v) for v in equation.ins]
        changes = kind_named(node.kind).changes(equation)
        results = _clipped(equation, operands) or compat.rebind(equation.eqn, operands, **changes)
        env.update((v, x) for v, x in zip(equation.outs, results, strict=True) if v not in env)
    return [env[v] for v in node.outs]


def _clipped(equation: Equation, operands: Sequence[Any]) -> list[Any] | None:
    """A relu or clip by a constant: no gradient on the bound, where a quantized value often is; `max` would pass half."""
    is_data = [v.is_data for v in equation.ins]
    if equation.name not in ("max", "min") or sum(is_data) != 1:
        return None
    x, bound = (operands[i] for i in ((0, 1) if is_data[0] else (1, 0)))
    inside = x > bound if equation.name == "max" else x < bound
    return [jnp.where(inside, x, jnp.broadcast_to(bound, inside.shape))]


def indices(node: Node, env: Mapping[Value, Any], get: Callable[[Value], Any]) -> list[Any]:
    """Returns the integers of an ``index`` node, as it is written: an argument, or what is computed of integers."""
    if not node.equations:
        return [env[node.out]]
    (equation,) = node.equations
    return compat.rebind(equation.eqn, [env[v] if v.is_data else get(v) for v in equation.ins])


class Arithmetic:
    """The integer arithmetic of a program: what `lowbit.execute` runs and what simulation takes its values from.

    Args:
        program: the integer form.
        specs: by grid.
        rounding: how products are cut.
        numbers: from `lowbit.interpret.integer.constants.constants`, or packed.
        weights: codes by operation.
        known: values of constants that are no parameters: predicates, indices.
        carried: whether dots are computed on integers carried in float32.
        natives: nodes on the native kernels, by path.
    """

    def __init__(
        self,
        program: Placement,
        specs: Mapping[str, Spec],
        rounding: Rounding,
        numbers: Mapping[str, Mapping[str, Any]],
        weights: Mapping[str, QTensor],
        known: Constants,
        *,
        carried: bool,
        natives: Mapping[str, Callable[..., Any]] | None = None,
    ):
        self.program, self.specs, self.rounding, self.numbers = program, specs, rounding, numbers
        self.weights, self.known, self.carried, self.natives = weights, known, carried, natives or {}

    def spec(self, var: Value) -> Spec:
        """The spec of a value's grid."""
        return self.specs[self.program.grids[var]]

    def zero(self, var: Value) -> Array:
        """The zero point of a value's grid, int32."""
        return self.numbers[self.program.grids[var]]["zero"]

    def taken(self, node: Node, codes: Sequence[Any]) -> Taken:
        """Returns what a node computes from, given the codes that it reads."""
        on_grids = [v for v in node.ins if v in self.program.grids]  # masks have none
        return Taken(
            node, codes, [self.zero(v) for v in on_grids], [self.spec(v) for v in on_grids], self.spec(node.out),
            self.numbers.get(node.path, {}), self.weights.get(node.path), self.rounding, self.known, self.carried,
        )  # fmt: skip

    def __call__(self, node: Node, codes: Sequence[Any]) -> list[Any]:
        """Returns the codes of a node that is neither an input, nor an index, nor a scan."""
        if node.path in self.natives:
            return [self.natives[node.path](*codes)]
        return kind_named(node.kind).compute(self.taken(node, codes))
