"""One evaluator of integer programs, for every interpretation: what happens at a node is a function."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import cast_once, rounded_product
from lowbit.core.spec import Spec
from lowbit.program import compat
from lowbit.program.read import Equation, Value

from . import compute, grouped, long, long_rows
from .fixed import Rounding
from .flat import Constants
from .nodes import Node, Program
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

    def dequantize(self, dtype: Any) -> Array:
        """Returns the value."""
        return cast_once(rounded_product(self.levels - self.zero, self.scale), dtype)


AtScan = Callable[[Node, list[Any], Any], Any]
"""``(scan, what it carries at first and then at last, state) -> state``."""


def evaluate(
    nodes: Sequence[Node], env: dict[Value, Any], at: AtNode, state: Any, after_scan: AtScan | None = None
) -> Any:
    """Adds what the nodes make to ``env`` and returns the state after them. Scans carry the state.

    Args:
        nodes: in order.
        env: values; those of `lowbit.program.read.Program.inputs` and of outer loops are in it.
        at: what to do at a node that is no scan.
        state: given to ``at`` and taken from it.
        after_scan: what to do after a scan.
    """
    for node in nodes:
        if node.kind == "scan":
            state = _scan(node, env, at, state, after_scan)
            continue
        outs, state = at(node, [env[v] for v in node.ins], state)
        env.update(zip(node.outs, outs, strict=True))
    return state


def _scan(node: Node, env: dict[Value, Any], at: AtNode, state: Any, after_scan: AtScan | None) -> Any:
    details, loop = node.details, node.loop
    assert loop is not None
    count = details["count"]
    inits, xs = [env[v] for v in node.ins[:count]], [env[v] for v in node.ins[count:]]

    def turn(carry: Any, slices: Any) -> tuple[Any, Any]:
        values, state = carry
        inner = {**env, **dict(zip(details["carries"], values, strict=True))}
        inner |= {
            v: x._replace(levels=part) if isinstance(x, Levels) else part
            for v, x, part in zip(loop.slices, xs, slices, strict=True)
        }
        state = evaluate(node.body, inner, at, state, after_scan)
        return ([inner[v] for v in details["afters"]], state), [inner[v] for v in details["ys"]]

    scanned = [x.levels if isinstance(x, Levels) else x for x in xs]
    (values, state), ys = compat.scan(node.equations[0].eqn, turn, (inits, state), scanned)
    ys = [Levels(y.levels, y.scale[0], y.zero[0]) if isinstance(y, Levels) else y for y in ys]
    env.update(zip(node.outs, (*values, *ys), strict=True))
    return state if after_scan is None else after_scan(node, [*inits, *xs, *values, *xs], state)


def defined(node: Node, values: Sequence[Any], get: Callable[[Value], Any]) -> list[Any]:
    """Returns a node's results in float, by its equations; ``get`` has the values of what is not data."""
    if node.kind == "constant":
        return [get(node.details["value"])]
    env: dict[Value, Any] = dict(zip(node.ins, values, strict=True))
    for equation in node.equations:
        if all(v in env for v in equation.outs):
            continue
        env |= called(node, equation, env, get)
        operands = [env[v] if v in env else get(v) for v in equation.ins]
        changes = compute.NEAREST if node.kind == "lookup" and equation.name == "gather" else {}
        made = _clipped(equation, operands) or compat.rebind(equation.eqn, operands, **changes)
        env.update((v, x) for v, x in zip(equation.outs, made, strict=True) if v not in env)
    return [env[v] for v in node.outs]


def _clipped(equation: Equation, operands: Sequence[Any]) -> list[Any] | None:
    """A relu or clip by a constant: no gradient on the bound, where a quantized value often is; `max` would pass half."""
    is_data = [v.is_data for v in equation.ins]
    if equation.name not in ("max", "min") or sum(is_data) != 1:
        return None
    x, bound = (operands[i] for i in ((0, 1) if is_data[0] else (1, 0)))
    inside = x > bound if equation.name == "max" else x < bound
    return [jnp.where(inside, x, jnp.broadcast_to(bound, inside.shape))]


def tabulated(codes: Any, c: Mapping[str, Any], given: Spec, made: Spec) -> Any:
    """Returns a table's codes: an entry per 8-bit code, or a curve through 16-bit ones."""
    dtype = compute.code_dtype(made)
    if compute.code_dtype(given) == jnp.int16:
        return long.interpolated(codes, c, dtype)
    return compute.looked_up(codes, c, int(given.format.low))


def indices(node: Node, values: Sequence[Any], env: Mapping[Value, Any], get: Callable[[Value], Any]) -> list[Any]:
    """Returns the integers of an ``index`` node, as it is written: an argument, or what is computed of integers."""
    if not node.equations:
        return [env[node.out]]
    data, (equation,) = iter(values), node.equations
    return compat.rebind(equation.eqn, [next(data) if v.is_data else get(v) for v in equation.ins])


def picking(node: Node, values: Sequence[Any], get: Callable[[Value], Any]) -> list[Any]:
    """Returns the indices of a look-up: integers that depend on arguments, and written ones."""
    rest = iter(values)
    return [next(rest) if v.is_data else get(v) for v in node.equations[0].ins[1:]]


def _nothing() -> Array:
    """A zero point that is known to be 0 while a program is traced: a convolution then needs no sums of its windows."""
    with jax.ensure_compile_time_eval():
        return jnp.int32(0)


class Arithmetic:
    """The integer arithmetic of a program: what `lowbit.execute` runs and what simulation takes its values from.

    Args:
        program: the integer form.
        specs: by grid.
        rounding: how products are cut.
        found: from `lowbit.interpret.integer.constants.constants`, or packed.
        weights: codes by operation.
        known: values of constants that are no parameters: predicates, indices.
        carried: whether dots are computed on integers carried in float32.
        natives: operations on the native kernels, by path.
    """

    def __init__(
        self,
        program: Program,
        specs: Mapping[str, Spec],
        rounding: Rounding,
        found: Mapping[str, Mapping[str, Any]],
        weights: Mapping[str, QTensor],
        known: Constants,
        *,
        carried: bool,
        natives: Mapping[str, Callable[[Any], Any]] | None = None,
    ):
        self.program, self.specs, self.rounding, self.found = program, specs, rounding, found
        self.weights, self.known, self.carried, self.natives = weights, known, carried, natives or {}

    def spec(self, var: Value) -> Spec:
        """The spec of a value's grid."""
        return self.specs[self.program.grids[var]]

    def zero(self, var: Value) -> Array:
        """The zero point of a value's grid, int32."""
        return self.found[self.program.grids[var]]["zero"]

    def __call__(self, node: Node, codes: Sequence[Any]) -> list[Any]:
        """Returns the codes of a node that is neither an input, nor an index, nor a scan."""
        if node.path in self.natives:
            return [self.natives[node.path](*codes)]
        kind, c = node.kind, self.found.get(node.path, {})
        if kind == "lookup":
            dtype, table = compute.code_dtype(self.spec(node.out)), self.weights[node.path].codes
            indices = picking(node, codes, self.known.value)
            return [compute.picked(node.equations[0], table, indices, c, self.rounding, dtype)]
        zeros = [self.zero(v) for v in node.ins if v in self.program.grids]  # masks have none
        if kind == "move":
            rest = [self.known.value(v) for v in node.equations[0].ins[1:] if node.equations[0].name != "pad"]
            return compute.moved(node.equations[0], codes[0], zeros[0], rest)
        if kind == "constant":
            return [jnp.broadcast_to(c["codes"], node.out.shape)]
        if kind == "concatenate":
            return compat.rebind(node.equations[0].eqn, list(codes))
        if kind == "select":
            which, *rest = node.equations[0].ins
            predicate = codes[-1] if which.is_data else self.known.value(which)
            return compat.rebind(node.equations[0].eqn, [predicate, *codes[: len(rest)]])
        dtype = compute.code_dtype(self.spec(node.out))
        is_long = any(compute.code_dtype(self.spec(v)) == jnp.int16 for v in node.ins if v in self.program.grids)
        if kind == "table":
            return [tabulated(codes[0], c, self.spec(node.ins[0]), self.spec(node.out))]
        if kind in ("add", "max", "min"):
            return [(long if is_long else compute).added(node, codes, zeros, c, self.rounding, dtype)]
        if kind in ("dot", "conv"):
            operands = self.operands(node, codes, zeros)
            if "groups" in c:
                spec = self.spec(node.ins[0])
                found = grouped.grouped(
                    node.equations[0], self.weights[node.path], compute.reach_of_spec(spec), spec.format.bits
                )
                assert found is not None
                acc = grouped.matmul(found, *operands, c, carried=self.carried)
                return [long.linear(acc, c, self.rounding, dtype)]
            if is_long:
                return [
                    long.linear(
                        long.matmul(node.equations[0], *operands, carried=self.carried), c, self.rounding, dtype
                    )
                ]
            acc = compute.matmul(node.equations[0], *operands, carried=self.carried)
        else:
            acc = self.accumulator(node, codes, zeros, c, is_long=is_long)
        return [compute.linear(acc, c, self.rounding, dtype)]

    def operands(
        self, node: Node, codes: Sequence[Any], zeros: Sequence[Any]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Returns the codes, zero points and reaches of both operands of a dot or convolution."""
        operands, offsets = list(codes), list(zeros)
        reaches = [compute.reach_of_spec(self.spec(v)) for v in node.ins]
        if len(operands) == 1:
            at = 0 if node.equations[0].ins[1].is_data else 1
            weight = self.weights[node.path]
            operands.insert(at, weight.codes)
            offsets.insert(at, _nothing() if weight.zero is None else weight.zero.astype(jnp.int32))
            reaches.insert(at, compute.reach_of_spec(weight.spec))
        return operands, offsets, reaches

    def accumulator(
        self, node: Node, codes: Sequence[Any], zeros: Sequence[Array], c: Mapping[str, Any], *, is_long: bool
    ) -> Array:
        """Returns the int32 accumulator of a linear node that is no dot or convolution."""
        kind, first = node.kind, node.equations[0]
        if kind == "sum":
            return compute.summed(first, codes[0], zeros[0])
        if kind == "affine":
            return (codes[0].astype(jnp.int32) - zeros[0]) << compute.AFFINE_BITS
        if kind == "product":
            left, right = (x.astype(jnp.int32) - z for x, z in zip(codes, zeros, strict=True))
            return left * right
        if kind == "softmax":
            kept = node.details["kept"]
            if kept is not None:
                kept = codes[1] if kept.is_data else self.known.value(kept)
            return (long_rows if is_long else compute).softmax(codes[0], c, node.details["axis"], kept)
        return long_rows.normalized(codes[0], c, node) if is_long else compute.normalized(codes[0], c, node, zeros[0])
