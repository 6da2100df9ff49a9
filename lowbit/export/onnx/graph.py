"""Values and nodes of an ONNX graph, before it is a file. No ONNX library is needed here.

A node that was written before is not written again: `Graph.node` returns the value there is. What nobody uses is left out
at the end.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

Shape = tuple[int, ...]

INTEGERS = {
    "i2": np.dtype(ml_dtypes.int2),
    "u2": np.dtype(ml_dtypes.uint2),
    "i4": np.dtype(ml_dtypes.int4),
    "u4": np.dtype(ml_dtypes.uint4),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "i16": np.dtype(np.int16),
    "u16": np.dtype(np.uint16),
    "i32": np.dtype(np.int32),
}
"""Types of codes, by the word of the quantization primitives."""

_WORDS = {dtype: word for word, dtype in INTEGERS.items()}


def bits_of(dtype: Any) -> int:
    """Returns the bits that an element takes in the file.

    Example:
        >>> bits_of(INTEGERS["i4"]), bits_of(np.float32)
        (4, 32)
    """
    word = _WORDS.get(np.dtype(dtype))
    return int(word[1:]) if word else 8 * np.dtype(dtype).itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class Quantized:
    """A constant as codes: ``(codes - zero) * scale``.

    Attributes:
        codes: integers, of the value's shape.
        scale: float32, of the same shape; mostly a broadcast view.
        zero: integers of the same shape, or None.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None

    def moved(self, function: Any) -> "Quantized":
        """Returns the constant with ``function`` applied to codes, scales and zero points."""
        return Quantized(function(self.codes), function(self.scale), None if self.zero is None else function(self.zero))

    def values(self) -> np.ndarray:
        """Returns what it stands for, in float32."""
        zero = 0.0 if self.zero is None else self.zero.astype(np.float32)
        return ((self.codes.astype(np.float32) - zero) * self.scale).astype(np.float32)


@dataclasses.dataclass(eq=False)
class Value:
    """An edge of the graph.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        node: what makes it; None for inputs and constants.
        array: a constant's values.
        quantized: a constant's codes and scales.
        name: once it has one.
    """

    shape: Shape
    dtype: np.dtype
    node: "Node | None" = None
    array: np.ndarray | None = None
    quantized: Quantized | None = None
    name: str = ""

    @property
    def op(self) -> str:
        """The operator that makes it, or ``""``."""
        return "" if self.node is None else self.node.op

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclasses.dataclass(eq=False)
class Node:
    """An operator with one result.

    Attributes:
        op: ONNX's name.
        inputs: operands; None where an optional one is left out.
        attributes: by name: integers, floats, texts, lists of them.
        domain: the operator set; ``""`` is ONNX's own.
    """

    op: str
    inputs: list[Value | None]
    attributes: dict[str, Any]
    domain: str = ""


class Graph:
    """A graph under construction."""

    def __init__(self):
        self._values: dict[Any, Value] = {}
        self._keep: list[Value] = []  # keys hold ids: what they name must live

    def input(self, name: str, shape: Sequence[int], dtype: Any) -> Value:
        """Returns a new input."""
        return Value(tuple(shape), np.dtype(dtype), name=name)

    def constant(self, array: Any) -> Value:
        """Returns a constant; equal ones are one."""
        array = np.asarray(array)
        small = compact(array)
        key = array.dtype, array.shape, small.shape, hashlib.sha256(np.ascontiguousarray(small).tobytes()).digest()
        if key not in self._values:
            self._values[key] = Value(array.shape, array.dtype, array=array)
        return self._values[key]

    def own_constant(self, array: np.ndarray) -> Value:
        """Returns a constant of one user, whatever equals it.

        Where ONNX Runtime 1.32 turns signed bytes of a product into unsigned ones ("session.x64quantprecision", on x86), it
        names the new constant after the old, and rejects a file in which two products have one.
        """
        return Value(array.shape, array.dtype, array=array)

    def quantized(self, value: Quantized) -> Value:
        """Returns a constant that is kept as codes."""
        return Value(value.codes.shape, np.dtype(np.float32), quantized=value)

    def find(self, op: str, inputs: Sequence[Value | None], **attributes: Any) -> Value | None:
        """Returns the result of a node that was written, or None."""
        return self._values.get(_key(op, inputs, attributes))

    def node(
        self, op: str, inputs: Sequence[Value | None], shape: Sequence[int], dtype: Any, **attributes: Any
    ) -> Value:
        """Returns the result of an operator."""
        key = _key(op, inputs, attributes)
        if key not in self._values:
            node = Node(op, list(inputs), attributes)
            self._values[key] = Value(tuple(int(n) for n in shape), np.dtype(dtype), node=node)
            self._keep += [v for v in inputs if v is not None]
        return self._values[key]


def _key(op: str, inputs: Sequence[Value | None], attributes: dict[str, Any]) -> Any:
    frozen = sorted((name, tuple(v) if isinstance(v, list) else v) for name, v in attributes.items())
    return op, tuple(None if v is None else id(v) for v in inputs), tuple(frozen)


def compact(array: np.ndarray) -> np.ndarray:
    """Returns an array with every axis along which it does not change cut to one element.

    Example:
        >>> compact(np.broadcast_to(np.arange(3), (2, 3))).shape
        (1, 3)
    """
    for axis, n in enumerate(array.shape):
        if n > 1:
            first = array.take([0], axis)
            is_same = array == first
            if array.dtype.kind == "f":
                is_same |= (array != array) & (first != first)
            if array.strides[axis] == 0 or bool(np.all(is_same)):
                array = first
    return array


def order(outputs: Sequence[Value]) -> list[Value]:
    """Returns every value that the outputs depend on that is made by a node, operands first."""
    values: dict[int, Value] = {}
    stack = [(value, False) for value in reversed(outputs)]
    seen: set[int] = set()
    while stack:
        value, is_done = stack.pop()
        if is_done:
            values[id(value)] = value
        elif value.node is not None and id(value) not in seen:
            seen.add(id(value))
            stack.append((value, True))
            stack += [(v, False) for v in reversed(value.node.inputs) if v is not None]
    return list(values.values())


Users = Mapping[int, Sequence[Value | None]]
"""The values that are computed from a value, by its id; None stands for a result of the graph."""


def users_of(outputs: Sequence[Value]) -> Users:
    """Returns who uses every value."""
    users: dict[int, list[Value | None]] = {}
    for x in outputs:
        users.setdefault(id(x), []).append(None)
    for value in order(outputs):
        assert value.node is not None
        for x in value.node.inputs:
            if x is not None:
                users.setdefault(id(x), []).append(value)
    return users
