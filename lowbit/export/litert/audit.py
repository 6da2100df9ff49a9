"""What is inside a LiteRT model, and whether that is what the plan says: kernels, weights, widths."""

import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lowbit.export.storage import Stored
from lowbit.plan.rows import Plan
from lowbit.targets.target import INLINED_BYTES

_WIDTHS = {"INT2": 2, "INT4": 4, "INT8": 8, "UINT8": 8}
_NAMED = 4
"""Operations that an error lists."""

_BOUNDARY = ("QUANTIZE", "DEQUANTIZE")
_ELEMENTWISE = frozenset(
    (
        "ABS",
        "ADD",
        "ATAN2",
        "CEIL",
        "COS",
        "DIV",
        "ELU",
        "EQUAL",
        "EXP",
        "FLOOR",
        "GELU",
        "GREATER",
        "GREATER_EQUAL",
        "LEAKY_RELU",
        "LESS",
        "LESS_EQUAL",
        "LOG",
        "LOGISTIC",
        "MAXIMUM",
        "MINIMUM",
        "MUL",
        "NEG",
        "NOT_EQUAL",
        "POW",
        "ROUND",
        "RSQRT",
        "SELECT",
        "SELECT_V2",
        "SIGN",
        "SIN",
        "SQRT",
        "SQUARE",
        "SUB",
        "TANH",
    )
)
_SUMS = frozenset(("MEAN", "SUM", "SQUARED_DIFFERENCE", "REDUCE_MAX", "RESHAPE", "BROADCAST_TO"))
_ISLANDS = {
    "norm": _ELEMENTWISE | _SUMS,
    "softmax": _ELEMENTWISE | _SUMS,
    "table": _ELEMENTWISE | {"RESHAPE", "BROADCAST_TO"},
    "affine": frozenset(("ADD", "DIV", "MUL", "NEG", "SUB")),
}  # fmt: skip
"""Steps of a full-integer plan that LiteRT may have no faithful integer kernel for, and the float kernels they then become,
between a dequantization and a quantization: named in the contents, counted by `lowbit verify`. An affine step is one only
inside a scan: elsewhere it is a depthwise kernel (`lowbit.export.litert.affine`)."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value of the model.

    Attributes:
        type: ``INT8``, ``FLOAT32``.
        shape: its shape.
        constant_bytes: of a constant; else 0.
        scale: one, or one per channel; none of floats.
        zero_point: likewise.
    """

    type: str
    shape: tuple[int, ...]
    constant_bytes: int
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether it holds floats."""
        return self.type.startswith(("FLOAT", "BFLOAT"))


@dataclasses.dataclass(frozen=True)
class Operator:
    """A kernel call.

    Attributes:
        name: of the kernel.
        inputs: what it reads.
        outputs: what it makes.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def is_float(self) -> bool:
        """Whether it computes in floats: the boundary aside, and a constant that is dequantized at run time included."""
        if self.name in _BOUNDARY:
            return self.name == "DEQUANTIZE" and self.inputs[0].constant_bytes > 0
        return any(t.is_float for t in (*self.inputs, *self.outputs))


@dataclasses.dataclass(frozen=True)
class Contents:
    """The model.

    Attributes:
        operators: in order.
        tensors: all of them.
        weights: elements and bits of the weights that it should hold.
    """

    operators: tuple[Operator, ...]
    tensors: tuple[Tensor, ...]
    weights: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, text: str) -> "Contents":
        """Returns what JSON describes: the worker's, with ``weights`` added by the form."""
        data = json.loads(text)
        fields: list[dict[str, Any]] = [
            {name: tuple(v) if isinstance(v, list) else v for name, v in t.items()} for t in data["tensors"]
        ]
        tensors = tuple(Tensor(**t) for t in fields)

        def operator(entry: Mapping[str, Any]) -> Operator:
            ins, outs = (tuple(tensors[i] for i in entry[which]) for which in ("inputs", "outputs"))
            return Operator(entry["name"], ins, outs)

        wanted = tuple((count, bits) for count, bits in data.get("weights", ()))
        return cls(tuple(operator(entry) for entry in data["operators"]), tensors, wanted)

    @property
    def float_operators(self) -> tuple[str, ...]:
        """Names of kernels that compute in floats, in order, each once."""
        return tuple(dict.fromkeys(op.name for op in self.operators if op.is_float))

    @property
    def stored(self) -> tuple[Stored, ...]:
        """The weights as they are here, those left out that the converter merged away."""
        wanted, constants = collections.Counter(n for n, _ in self.weights), self._constants()
        return tuple(
            Stored(n, n * width)
            for n, count in wanted.items()
            for width in sorted(_WIDTHS[t] for t in constants.get(n, collections.Counter()).elements())[:count]
        )

    def _constants(self) -> dict[int, collections.Counter[str]]:
        """By number of elements, the integer types of constants."""
        constants: dict[int, collections.Counter[str]] = {}
        for t in self.tensors:
            if t.constant_bytes and t.type in _WIDTHS:
                constants.setdefault(math.prod(t.shape), collections.Counter())[t.type] += 1
        return constants

    def _behind(self, kernels: Sequence[str], plan: Plan) -> str:
        """Which operations of a plan may be behind float kernels: those whose weights they dequantize."""
        sizes = {math.prod(op.inputs[0].shape) for op in self.operators if op.is_float and op.name == "DEQUANTIZE"}
        sites = [(row.path, row.weight) for row in plan.rows]
        paths = [path for path, weight in sites if weight and math.prod(weight.operand.shape) in sizes]
        if "DEQUANTIZE" not in kernels or not paths:
            return ""
        more = len(paths) - _NAMED
        return f" ({', '.join(paths[:_NAMED])}{f' and {more} more of that size' if more > 0 else ''})"

    def check(self, plan: Plan) -> None:
        """Raises ValueError where the model is not what the plan says."""
        left = sorted({op.name for op in self.operators if op.name.startswith(("STABLEHLO_", "CUSTOM"))})
        if left:
            raise ValueError(f"the converter left operations that no LiteRT runtime has: {', '.join(left)}")
        if any(t.type == "INT16" and t.scale for t in self.tensors):
            raise ValueError("16-bit tensors get 32-bit biases, which runtimes refuse or compute wrongly; use a8")
        if plan.is_full_integer:
            kinds = {step.kind for step in plan.steps}
            known = frozenset().union(*(names for kind, names in _ISLANDS.items() if kind in kinds))
            floats = [name for name in self.float_operators if name not in known]
            if floats:
                raise ValueError(
                    f"LiteRT would compute {', '.join(floats)}{self._behind(floats, plan)} of this full-integer plan in floats, having "
                    f"no integer kernel for it in this place: write it otherwise; factors of batch norms fold into the weights "
                    f"(lowbit.rewrites)"
                )
        constants = self._constants()
        for count, bits in self.weights:
            if count * bits <= 8 * INLINED_BYTES:  # the converter may merge small ones
                continue
            types = sorted(constants.get(count, ()))
            if all(_WIDTHS[t] != bits for t in types):
                got = f"as {' and '.join(types)}" if types else "in floats"
                raise ValueError(f"the converter stored a weight of {count:,} elements {got}, not in {bits} bits")
