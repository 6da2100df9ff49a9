"""A closed jaxpr as a graph: calls are inlined, loops of known length unrolled, what depends on constants alone is computed."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.export.composites import NAMES
from lowbit.program import compat

from . import arithmetic, indexing, movement, products, quantized, windows
from .arithmetic import Handler
from .graph import Graph, Value, bits_of

_INLINED = ("jit", "remat", "custom_jvp", "custom_vjp")
_UNROLLED = 4096
"""Operators that an unrolled loop may have."""

_DTYPES = (
    "bool",
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
)

_VIEWS = frozenset(("broadcast_in_dim", "reshape", "squeeze", "transpose", "slice", "rev"))
"""What moves a constant without computing: it may stay a view of a smaller one, and codes stay codes."""

_CODE_BITS, _MANY = 8, 64
"""An integer constant of so few bits and so many elements is a weight: cast to float, it stays codes."""


def handlers() -> Mapping[str, Handler]:
    """Returns what is written, by primitive."""
    found: dict[str, Handler] = {}
    for module in (arithmetic, indexing, products, windows, quantized):
        found |= module.HANDLERS
    return found


def graph_of(g: Graph, jaxpr: Any, inputs: Sequence[Value]) -> list[Value]:
    """Returns the results of a closed jaxpr.

    Args:
        g: where operators are written.
        jaxpr: the closed jaxpr.
        inputs: flat operands.

    Raises:
        ValueError: for a primitive that has no ONNX form, by its name and source line.
    """
    return _Translation(g).body(jaxpr.jaxpr, [_constant(g, c) for c in jaxpr.consts], inputs)


def _constant(g: Graph, value: Any) -> Value:
    if jnp.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.extended):
        raise ValueError("a random key among the model's constants has no ONNX form; sample outside of the model")
    return g.constant(np.asarray(value))


class _Translation:
    def __init__(self, g: Graph):
        self.g = g
        self.handlers = handlers()

    def body(self, jaxpr: Any, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
        env: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))

        def get(var: Any) -> Value:
            return self.literal(var) if compat.is_literal(var) else env[var]

        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self.equation(eqn, [get(v) for v in eqn.invars]), strict=True))
        return [get(v) for v in jaxpr.outvars]

    def literal(self, var: Any) -> Value:
        return self.g.constant(np.asarray(var.val, var.aval.dtype))

    def equation(self, eqn: Any, values: Sequence[Value]) -> list[Value]:
        name, kind = eqn.primitive.name, compat.kind(eqn)
        if kind in _INLINED:
            (body,) = compat.bodies(eqn)
            return self.body(body.jaxpr, [_constant(self.g, c) for c in body.consts], values)
        if kind == "scan":
            return self.scan(eqn, values)
        if kind == "cond" and values[0].array is not None:
            branches = compat.bodies(eqn)
            body = branches[min(max(int(values[0].array), 0), len(branches) - 1)]
            return self.body(body.jaxpr, [_constant(self.g, c) for c in body.consts], values[1:])
        if all(v.array is not None for v in values) and name not in NAMES and not self.keeps(eqn, values):
            return [self.g.constant(np.asarray(y)) for y in self.computed(eqn, values)]
        if name not in self.handlers:
            raise ValueError(self.refusal(eqn))
        if len(eqn.outvars) > 1:  # optimization_barrier
            return [
                self.handlers[name](self.g, [v], eqn.params, o.aval) for v, o in zip(values, eqn.outvars, strict=True)
            ]
        out = eqn.outvars[0].aval
        if str(out.dtype) not in _DTYPES and name != "quant_quantize":  # narrow codes are computed in bytes
            raise ValueError(
                f"{name} makes {out.dtype} ({compat.source_line(eqn)}), which ONNX Runtime does not compute on a CPU: allowed "
                f"are {', '.join(_DTYPES)}; compute in float32"
            )
        try:
            made = self.handlers[name](self.g, values, eqn.params, out)
        except ValueError as error:
            where = compat.source_line(eqn)
            raise ValueError(f"{error}{f' ({where})' if where else ''}") from None
        assert made.shape == tuple(out.shape), (name, made.shape, out.shape)
        assert made.dtype == np.dtype(out.dtype) or name == "quant_quantize", (name, made.dtype, out.dtype)
        return [made]

    def keeps(self, eqn: Any, values: Sequence[Value]) -> bool:
        """Whether an equation of constants is no work for now: it moves them, or would make codes wide."""
        if eqn.primitive.name in _VIEWS:
            return True
        if eqn.primitive.name != "convert_element_type" or not values:
            return False
        x, out = values[0], eqn.outvars[0].aval
        is_many = x.dtype.kind in "iuV" and x.size >= _MANY and out.dtype == jnp.float32
        return is_many and x.array is not None and bits_of(arithmetic.narrowed(x.array).dtype) <= _CODE_BITS

    def computed(self, eqn: Any, values: Sequence[Value]) -> list[Any]:
        with jax.ensure_compile_time_eval():
            return compat.rebind(eqn, [jnp.asarray(v.array) for v in values])

    def refusal(self, eqn: Any) -> str:
        name, where = eqn.primitive.name, compat.source_line(eqn)
        at = f" ({where})" if where else ""
        hint = {
            "while": "; a loop must have a length that is known: use lax.scan, or lax.fori_loop with constant bounds",
            "cond": "; both branches run and lax.select chooses, or leave the choice to two models",
        }.get(name, "; write it with other operations, or leave the target out")
        return f"the primitive {name} has no ONNX form{at}{hint}"

    def scan(self, eqn: Any, values: Sequence[Value]) -> list[Value]:
        (body,) = compat.bodies(eqn)
        n_consts, n_carry = compat.scan_counts(eqn)
        length = eqn.params["length"]
        if length * len(body.jaxpr.eqns) > _UNROLLED:
            where = compat.source_line(eqn)
            raise ValueError(
                f"the primitive scan has {length} steps of {len(body.jaxpr.eqns)} operations ({where}); ONNX gets loops "
                f"unrolled, up to {_UNROLLED} operations: export one step, its carry an argument and a result"
            )
        consts, carry, xs = values[:n_consts], list(values[n_consts : n_consts + n_carry]), values[n_consts + n_carry :]
        closed = [_constant(self.g, c) for c in body.consts]
        stacked: list[list[Value]] = [[] for _ in eqn.outvars[n_carry:]]
        steps = range(length)
        for i in reversed(steps) if eqn.params["reverse"] else steps:
            parts = [self.at(x, i) for x in xs]
            outs = self.body(body.jaxpr, closed, [*consts, *carry, *parts])
            carry = outs[:n_carry]
            for found, y in zip(stacked, outs[n_carry:], strict=True):
                found.append(y)
        return [*carry, *(self.stack(ys, reverse=eqn.params["reverse"]) for ys in stacked)]

    def at(self, x: Value, index: int) -> Value:
        """One step's slice."""
        starts, stops = [0] * len(x.shape), list(x.shape)
        starts[0], stops[0] = index, index + 1
        return movement.reshape(self.g, indexing.sliced(self.g, x, starts, stops, [1] * len(stops)), x.shape[1:])

    def stack(self, ys: Sequence[Value], *, reverse: bool) -> Value:
        rows = [movement.reshape(self.g, y, (1, *y.shape)) for y in ys]
        rows = rows[::-1] if reverse else rows
        shape = (len(rows), *ys[0].shape)
        out = jax.ShapeDtypeStruct(shape, ys[0].dtype)
        return rows[0] if len(rows) == 1 else indexing.concatenate(self.g, rows, {"dimension": 0}, out)
