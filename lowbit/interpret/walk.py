"""The walk: one evaluator of a program, for every interpretation.

An interpretation says what happens at an operation; the walk does everything else: it re-evaluates the other equations
unchanged, carries the state of every site through jit, scan, while, cond, remat and shard_map, moves quantized weights
with their scales, and leaves alone whatever holds no operation of interest.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lowbit.core.meshes import automatic
from lowbit.core.qtensor import QTensor
from lowbit.core.rounding import settled, unfused
from lowbit.packed.bits import unpack
from lowbit.packed.native import NativeTensor
from lowbit.packed.trees import Dropped
from lowbit.program import compat, primitives
from lowbit.program.eqn import Eqn
from lowbit.program.evaluate import evaluate, traced
from lowbit.program.read import Equation, Program

from . import moves
from .kinds import Address
from .lookup import pick
from .operations import Inventory, Operation

Sites = dict[str, Any]
"""State by operation path. Inside a scan over layers, of the current layer."""

AtOperation = Callable[[Operation, list[Any], Any], tuple[Any, Any]]
"""``(operation, operand values, its state or None) -> (result, its new state)``."""


@dataclasses.dataclass(frozen=True)
class Walk:
    """One interpretation of one inventory.

    Attributes:
        inventory: what `take_inventory` found.
        at: called at every operation of interest.
        paths: the operations of interest; the rest is re-evaluated as it is.
        writes: whether ``at`` changes the state, so that loops must carry it.
        reduce: called with the new states of a shard_map body and its mesh axes, where ``writes``.
        is_guarded: whether products that are summed are protected from fused multiply-adds.
        inside: what to do with a function that has its own gradient and holds an operation: look into it (``"any"``),
            re-evaluate it whole (``"keep"``), or raise (``"raise"``).
    """

    inventory: Inventory
    at: AtOperation
    paths: frozenset[str]
    writes: bool = False
    reduce: Callable[[Sites, tuple[str, ...]], Sites] | None = None
    is_guarded: bool = False
    inside: str = "any"

    def run(self, args: Sequence[Any], sites: Sites) -> tuple[list[Any], Sites]:
        """Returns the results of the program that ``inventory`` was read from, and the states after it.

        Args:
            args: flat values; parameters may be `QTensor`.
            sites: states by path.
        """
        run = _Run(self, {op.address: op for op in self.inventory.operations if op.path in self.paths})
        outs, after = run.body(self.inventory.program, args, sites)
        return [plain(v) for v in outs], after


def plain(value: Any) -> Any:
    """Returns ``value`` as an array: dequantized if quantized."""
    return unpack(value).dequantize() if isinstance(value, QTensor) else value


def reevaluate(eqn: Eqn, values: Sequence[Any]) -> list[Any]:
    """Returns the results of an equation that is no operation: a quantized weight moves if it can, else it is an array."""
    if eqn.primitive.name in primitives.EACH:
        rest = [not isinstance(v, QTensor | Dropped) for v in values]
        outs = iter(lax.optimization_barrier([v for v, is_array in zip(values, rest, strict=True) if is_array]))
        return [next(outs) if is_array else v for v, is_array in zip(values, rest, strict=True)]
    if values and isinstance(values[0], QTensor):
        first = values[0]
        if moves.track(eqn, moves.leaf_axes(first.shape)) is not None:
            return [_moved(eqn, first, [plain(v) for v in values[1:]])]
    dropped = next((v for v in values if isinstance(v, Dropped)), None)
    if dropped is not None:  # only a derived weight or an integer constant, already packed, needs this
        return [dropped] * len(eqn.outvars)
    return compat.rebind(eqn, [plain(v) for v in values])


def _moved(eqn: Eqn, weight: QTensor, others: Sequence[Any]) -> QTensor:
    if eqn.primitive.name == "convert_element_type":
        return moves.move(eqn, weight)
    moved = moves.move(eqn, _codes(weight), others)
    if not isinstance(weight, NativeTensor):
        return moved
    layers = weight.ndim - len(weight.axes)
    if layers:
        take = moves.along_layers(eqn, layers, others)
        return moved if take is None else weight.layer(moved, take)
    if eqn.primitive.name not in moves.CUTTING:
        return weight.moved(moved, moves.track(eqn, weight.axes))
    return moved


def _codes(weight: QTensor) -> QTensor:
    """A weight with one code per element, without its kernel's order."""
    return unpack(weight.without_matrix() if isinstance(weight, NativeTensor) else weight)


class _Run:
    """One evaluation of a program in which operations are replaced and carry their states; loops and branches with none run as they are.

    Args:
        walk: what is done at an operation, and which may be.
        operations: those that are replaced, by address.
    """

    def __init__(self, walk: Walk, operations: Mapping[Address, Operation]):
        self.walk = walk
        self.operations = operations
        inside = (*operations, *walk.inventory.picks)
        self.scopes = {address[:i] for address in inside for i in range(1, len(address))}

    def body(self, program: Program, args: Sequence[Any], sites: Sites) -> tuple[list[Any], Sites]:
        summed = _summed_products(program) if self.walk.is_guarded else frozenset()

        def at(equation: Equation, values: list[Any]) -> Sequence[Any]:
            nonlocal sites
            outs, sites = self.equation(equation, values, sites)
            if equation in summed:
                return [out if isinstance(out, Dropped) else unfused(out) for out in outs]
            return outs

        return evaluate(program, args, otherwise=at, constant=traced), sites

    def equation(self, equation: Equation, values: list[Any], sites: Sites) -> tuple[Sequence[Any], Sites]:
        """Returns what an equation makes, and the states after it."""
        address = equation.address
        if address in self.operations:
            operation = self.operations[address]
            at = functools.partial(self.walk.at, operation)
            like = equation.eqn.outvars[0].aval, None
            operands = [settled(v) if isinstance(v, jax.Array) else v for v in operation.operands(values)]
            out, state = automatic(at, operands, sites.get(operation.path), like=like)
            return [out], ({**sites, operation.path: state} if self.walk.writes else sites)
        if self.looks_inside(equation, values):
            return getattr(self, "_" + str(equation.call))(equation, values, sites)
        if address in self.walk.inventory.picks and isinstance(values[0], QTensor):
            return [pick(equation.eqn, values[0], values[1:])], sites
        return reevaluate(equation.eqn, values), sites

    def looks_inside(self, equation: Equation, values: list[Any]) -> bool:
        """Whether a call is walked through, not evaluated whole: what `lowbit.interpret.inventory` reads through, this walks through.

        It holds an operation, or a quantized weight leaves it as one, or something in it needs a weight that is packed
        already, and the rest does not.
        """
        kind = equation.call
        if kind is None or equation.address in self.scopes:
            return kind is not None
        if any(isinstance(v, Dropped) for v in values):  # jax finds what is not needed of every call but these
            return kind not in ("while", "custom_jvp", "custom_vjp")
        kept = values if kind in compat.INLINED else compat.carried(equation.eqn, values)
        return any(isinstance(v, QTensor) for v in kept)

    def inner(self, address: Address, sites: Sites) -> Sites:
        """The states of the operations inside a call."""
        depth = len(address)
        return {
            op.path: sites[op.path] for a, op in self.operations.items() if a[:depth] == address and op.path in sites
        }

    def _jit(self, equation, values, sites):
        (body,) = equation.bodies
        return self.body(body, values, sites)

    def _custom_vjp(self, equation, values, sites):
        if self.walk.inside == "keep":
            return reevaluate(equation.eqn, values), sites
        if self.walk.inside == "raise":
            depth = len(equation.address)
            names = sorted(op.path for a, op in self.operations.items() if a[:depth] == equation.address)
            raise ValueError(
                f"{', '.join(names)} lies inside a function with its own gradient ({equation.call}, "
                f"{equation.source}); simulating it would drop that gradient: give it the rule 'keep', or pass "
                f"custom_vjp='body' to use the gradient of its body"
            )
        outs, sites = self._jit(equation, values, sites)
        return [plain(v) for v in outs], sites

    _custom_jvp = _custom_vjp

    def _remat(self, equation, values, sites):
        (body,) = equation.bodies
        inner = self.inner(equation.address, sites)

        def function(values, inner):
            return self.body(body, values, inner)

        outs, after = compat.remat(equation.eqn, function)(values, inner)
        return outs, ({**sites, **after} if self.walk.writes else sites)

    def _cond(self, equation, values, sites):
        index, *operands = values
        if isinstance(index, Dropped):
            return reevaluate(equation.eqn, values), sites
        inner = self.inner(equation.address, sites)

        def branch(body):
            def function(operands, inner):
                outs, after = self.body(body, operands, inner)
                return [plain(v) for v in outs], after

            return function

        functions = [branch(body) for body in equation.bodies]
        if any(isinstance(v, Dropped) for v in operands):
            functions = _dropping_alike(functions, operands, inner)
        index = index.astype(jnp.int32) if index.dtype == jnp.bool_ else index
        outs, after = lax.switch(index, functions, operands, inner)
        return outs, ({**sites, **after} if self.walk.writes else sites)

    def _while(self, equation, values, sites):
        condition, body = equation.bodies
        n_carry = len(equation.outs)
        n_cond, n_body = len(condition.inputs) - n_carry, len(body.inputs) - n_carry
        cond_consts = [plain(v) for v in values[:n_cond]]
        body_consts, carry = values[n_cond : n_cond + n_body], values[n_cond + n_body :]
        inner = self.inner(equation.address, sites) if self.walk.writes else {}
        fixed = self._fixed(body, n_body, carry)

        def check(state):
            moving, _ = state
            full = [plain(v) for v in _merge(moving, fixed)]
            return self.body(condition, [*cond_consts, *full], sites)[0][0]

        def step(state):
            moving, inner = state
            now = {**sites, **inner}
            full = _merge(moving, fixed)
            outs, after = self.body(body, [*body_consts, *full], now)
            return _moving([plain(v) for v in outs], fixed), {path: after[path] for path in inner}

        moving, after = lax.while_loop(check, step, (_moving([plain(v) for v in carry], fixed), inner))
        return _merge(moving, fixed), {**sites, **after}

    def _scan(self, equation, values, sites):
        (body,) = equation.bodies
        n_consts, n_carry = equation.loop.n_consts, len(equation.loop.carries)
        consts, carry, xs = values[:n_consts], values[n_consts : n_consts + n_carry], values[n_consts + n_carry :]
        inner = self.inner(equation.address, sites)
        is_layers = equation.address in self.walk.inventory.layer_scans
        fixed = self._fixed(body, n_consts, carry)
        carried = inner if self.walk.writes and not is_layers else {}
        scanned = inner if is_layers else {}

        def step(state, slices):
            moving, carried = state
            xs, scanned = slices
            now = {**sites, **carried, **scanned}
            full = [*consts, *_merge(moving, fixed), *xs]
            outs, after = self.body(body, full, now)
            outs = [plain(v) for v in outs]
            moved = _moving(outs[:n_carry], fixed)
            stacked = {path: after[path] for path in scanned} if self.walk.writes else {}
            return (moved, {path: after[path] for path in carried}), (outs[n_carry:], stacked)

        start = _moving([plain(v) for v in carry], fixed), carried
        if any(isinstance(v, Dropped) for v in values):
            start = _lost(step, start, (xs, scanned))
        (moving, carried), (ys, stacked) = compat.scan(equation.eqn, step, start, (xs, scanned))
        return [*_merge(moving, fixed), *ys], {**sites, **carried, **stacked}

    def _fixed(self, body: Program, offset: int, carry: Sequence[Any]) -> dict[int, Any]:
        """Quantized weights that a loop carries unchanged: they stay outside the carry."""
        return {
            i: value
            for i, value in enumerate(carry)
            if isinstance(value, QTensor) and body.outs[i] is body.inputs[offset + i]
        }

    def _shard_map(self, equation, values, sites):
        (body,), eqn = equation.bodies, equation.eqn
        inner = self.inner(equation.address, sites)
        values = [_codes(v) if isinstance(v, QTensor) else v for v in values]  # devices split codes, not bytes
        flat, treedef = jax.tree.flatten((values, inner))
        state, state_tree = jax.tree.flatten(inner)
        specs = [leaf for v, spec in zip(values, eqn.params["in_specs"], strict=True) for leaf in _specs(v, spec)]
        replicated = [PartitionSpec()] * len(state)
        out_specs = list(eqn.params["out_specs"])

        def function(*flat):
            values, inner = jax.tree.unflatten(treedef, flat)
            outs, after = self.body(body, values, inner)
            outs = [plain(v) for v in outs]
            if not self.walk.writes:
                return outs
            assert self.walk.reduce is not None
            return [*outs, *jax.tree.leaves(self.walk.reduce(after, compat.manual_axes(eqn)))]

        all_specs = [*out_specs, *replicated] if self.walk.writes else out_specs
        outs = compat.shard_map(eqn, function, (*specs, *replicated), all_specs)(*flat)
        after = jax.tree.unflatten(state_tree, outs[len(out_specs) :]) if self.walk.writes else {}
        return outs[: len(out_specs)], {**sites, **after}


def _lost(step, start, stacked):
    """What a scan carries, without what it computes of weights that are packed already: nothing needs that."""
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), stacked)
    moving, carried = start
    while True:
        (after, _), _ = jax.eval_shape(step, (moving, carried), one)
        now = [b if isinstance(b, Dropped) else a for a, b in zip(moving, after, strict=True)]
        if [isinstance(v, Dropped) for v in now] == [isinstance(v, Dropped) for v in moving]:
            return now, carried
        moving = now


def _dropping_alike(functions, operands, inner):
    """Branches that all lack a result where one of them does: nothing needs it, and they must agree."""
    results = [jax.eval_shape(function, operands, inner)[0] for function in functions]
    lost = {i: v for outs in results for i, v in enumerate(outs) if isinstance(v, Dropped)}

    def without(function):
        def run(operands, inner):
            outs, after = function(operands, inner)
            return [lost.get(i, v) for i, v in enumerate(outs)], after

        return run

    return [without(function) for function in functions]


def _merge(moving: Sequence[Any], fixed: Mapping[int, Any]) -> list[Any]:
    rest = iter(moving)
    return [fixed[i] if i in fixed else next(rest) for i in range(len(moving) + len(fixed))]


def _moving(carry: Sequence[Any], fixed: Mapping[int, Any]) -> list[Any]:
    return [value for i, value in enumerate(carry) if i not in fixed]


def _specs(value: Any, spec: Any) -> list[Any]:
    """The partition specs of a value's arrays: a weight's scales follow its codes, on the axes along which they vary."""
    if not isinstance(value, QTensor):
        return [spec] * len(jax.tree.leaves(value))
    names = (*spec, *[None] * (value.ndim - len(spec)))
    shapes = [leaf.shape for leaf in jax.tree.leaves(value)]
    return [PartitionSpec(*(name if n > 1 else None for name, n in zip(names, shape, strict=True))) for shape in shapes]


def _summed_products(program: Program) -> frozenset[Equation]:
    """Equations that multiply floats and whose result meets a sum: a compiler may fuse the two, and round once."""
    summed = {v for e in program.equations if e.name in primitives.ADDITIONS for v in e.ins}
    return frozenset(
        e
        for e in program.equations
        if e.name == "mul" and jnp.issubdtype(e.outs[0].dtype, jnp.floating) and e.outs[0] in summed
    )
