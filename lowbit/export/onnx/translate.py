"""A closed jaxpr as a graph: calls are inlined, loops of known length unrolled, what depends on constants alone is computed."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from lowbit.export.composites import NAMES
from lowbit.program import compat, primitives
from lowbit.program import evaluate as evaluation
from lowbit.program.eqn import Eqn
from lowbit.program.read import Equation, Program, read
from lowbit.program.read import Value as Read
from lowbit.program.spellings import SPELLINGS, spelling

from . import arithmetic, bits, indexing, movement, products, quantized, windows
from .arithmetic import Handler
from .graph import Graph, Value, bits_of, order

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

_VIEWS = primitives.SHAPED | {"slice"}
"""What moves a constant without computing: it may stay a view of a smaller one, and codes stay codes."""

_CODE_BITS, _MANY = 8, 64
"""An integer constant of so few bits and so many elements is a weight: cast to float, it stays codes."""


def handlers() -> Mapping[str, Handler]:
    """Returns what is written, by primitive."""
    by_name: dict[str, Handler] = {}
    for module in (arithmetic, indexing, products, windows, quantized):
        by_name |= module.HANDLERS
    return by_name


def graph_of(g: Graph, jaxpr: ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
    """Returns the results of a closed jaxpr.

    Args:
        g: where operators are written.
        jaxpr: the closed jaxpr.
        inputs: flat operands.

    Raises:
        ValueError: for a primitive that has no ONNX form, by its name and source line.
    """
    outputs = _Translation(g).body(read(jaxpr), inputs)
    if any(map(bits.is_pattern, order(outputs))):
        raise ValueError(
            "the primitive bitcast_convert_type has no ONNX form; write it with other operations, or leave the target out"
        )
    return outputs


def _constant(g: Graph, value: Any) -> Value:
    if jnp.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.extended):
        raise ValueError("a random key among the model's constants has no ONNX form; sample outside of the model")
    return g.constant(np.asarray(value))


class _Translation:
    """The evaluation of a program whose values are edges of an ONNX graph: an equation adds the operators that it has there."""

    def __init__(self, g: Graph):
        self.g = g
        self.handlers = handlers()

    def body(self, program: Program, args: Sequence[Value]) -> list[Value]:
        handlers = dict.fromkeys(SPELLINGS.keys() - self.handlers.keys(), self.spelled)
        handlers |= {"scan": self.scan, "cond": self.cond}
        return evaluation.evaluate(program, args, handlers, self.equation, self.written)

    def written(self, value: Read) -> Value:
        return _constant(self.g, value.value)

    def spelled(self, equation: Equation, values: Sequence[Value]) -> list[Value]:
        return self.body(spelling(equation), values)

    def cond(self, equation: Equation, values: Sequence[Value]) -> list[Value]:
        if values[0].array is None:
            raise ValueError(self.refusal(equation.eqn))
        branches = equation.bodies
        return self.body(branches[min(max(int(values[0].array), 0), len(branches) - 1)], values[1:])

    def equation(self, equation: Equation, values: Sequence[Value]) -> list[Value]:
        eqn, name = equation.eqn, equation.name
        if all(v.array is not None for v in values) and name not in NAMES and not self.keeps(eqn, values):
            return [self.g.constant(np.asarray(y)) for y in self.computed(eqn, values)]
        if name == "bitcast_convert_type" or any(map(bits.is_pattern, values)):
            return [self.of_bits(equation, values)]
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
            results = self.handlers[name](self.g, values, eqn.params, out)
        except ValueError as error:
            where = compat.source_line(eqn)
            raise ValueError(f"{error}{f' ({where})' if where else ''}") from None
        assert results.shape == tuple(out.shape), (name, results.shape, out.shape)
        assert results.dtype == np.dtype(out.dtype) or name == "quant_quantize", (name, results.dtype, out.dtype)
        return [results]

    def of_bits(self, equation: Equation, values: Sequence[Value]) -> Value:
        eqn = equation.eqn
        results = bits.written(self.g, equation.name, values, eqn.params, eqn.outvars[0].aval, self.handlers)
        if results is None:
            raise ValueError(self.refusal(eqn, "bitcast_convert_type"))
        return results

    def keeps(self, eqn: Eqn, values: Sequence[Value]) -> bool:
        """Whether an equation of constants is no work for now: it moves them, or would make codes wide."""
        if eqn.primitive.name in _VIEWS:
            return True
        if eqn.primitive.name != "convert_element_type" or not values:
            return False
        x, out = values[0], eqn.outvars[0].aval
        is_many = x.dtype.kind in "iuV" and x.size >= _MANY and out.dtype == jnp.float32
        return is_many and x.array is not None and bits_of(arithmetic.narrowed(x.array).dtype) <= _CODE_BITS

    def computed(self, eqn: Eqn, values: Sequence[Value]) -> list[Any]:
        with jax.ensure_compile_time_eval():
            return compat.rebind(eqn, [jnp.asarray(v.array) for v in values])

    def refusal(self, eqn: Eqn, name: str = "") -> str:
        name, where = name or eqn.primitive.name, compat.source_line(eqn)
        at = f" ({where})" if where else ""
        hint = {
            "while": "; a loop must have a length that is known: use lax.scan, or lax.fori_loop with constant bounds",
            "cond": "; both branches run and lax.select chooses, or leave the choice to two models",
        }.get(name, "; write it with other operations, or leave the target out")
        return f"the primitive {name} has no ONNX form{at}{hint}"

    def scan(self, equation: Equation, values: Sequence[Value]) -> list[Value]:
        loop = equation.loop
        assert loop is not None
        count = len(loop.equations)
        if loop.length * count > _UNROLLED:
            raise ValueError(
                f"the primitive scan has {loop.length} steps of {count} operations ({equation.source}); ONNX gets loops "
                f"unrolled, up to {_UNROLLED} operations: export one step, its carry an argument and a result"
            )
        return evaluation.turns(equation, values, self.body, self.at, self.stack)

    def at(self, x: Value, index: int) -> Value:
        """One step's slice."""
        starts, stops = [0] * len(x.shape), list(x.shape)
        starts[0], stops[0] = index, index + 1
        return movement.reshape(self.g, indexing.sliced(self.g, x, starts, stops, [1] * len(stops)), x.shape[1:])

    def stack(self, ys: Sequence[Value]) -> Value:
        rows = [movement.reshape(self.g, y, (1, *y.shape)) for y in ys]
        shape = (len(rows), *ys[0].shape)
        out = jax.ShapeDtypeStruct(shape, ys[0].dtype)
        return rows[0] if len(rows) == 1 else indexing.concatenate(self.g, rows, {"dimension": 0}, out)
