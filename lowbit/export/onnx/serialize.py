"""A graph as the bytes of an ONNX file, through the `onnx` package.

Tried with `onnx-ir` 1.1, a graph of 4-bit codes, a cast and two results comes out the same to the byte, with some 30 lines fewer here: it
packs codes itself. It is not used: it needs sympy, and `onnx` beside it for the check of what was written.
"""

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .graph import Node, Value, bits_of, order

OPSET = 21
"""The first with 4-bit integers, 16-bit codes and blocks of scales in DequantizeLinear."""

IR_VERSION = 10
"""The one that came with it: older readers, such as those of phones, take no newer one."""

INSTALL = "pip install 'lowbit[onnx]'"

_LARGEST_FILE = 2**31 - 1


def library() -> Any:
    """Returns the `onnx` package.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        return importlib.import_module("onnx")
    except ImportError:
        raise ImportError(f"writing ONNX files needs the onnx package: {INSTALL}") from None


def serialize(
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    output_names: Sequence[str],
    *,
    name: str,
    text: str,
    properties: Mapping[str, str],
) -> bytes:
    """Returns the file, checked.

    Args:
        inputs: its inputs, named.
        outputs: its results.
        output_names: their names.
        name: of the graph.
        text: what the file says of itself.
        properties: further texts by name.

    Raises:
        ImportError: if the onnx package is not installed.
        ValueError: if the file would pass 2 GB, or is no valid ONNX.
    """
    onnx = library()
    results = _named(inputs, outputs, output_names)
    nodes, constants = [], []
    for value in order(results):
        assert value.node is not None
        for x in value.node.inputs:
            if x is not None and x.array is not None and not x.name:
                x.name = f"_constant_{len(constants)}"
                constants.append(_tensor(onnx, x.name, x.array))
        value.name = value.name or f"_{value.node.op.lower()}_{len(nodes)}"
        nodes.append(
            onnx.helper.make_node(
                value.node.op,
                ["" if x is None else x.name for x in value.node.inputs],
                [value.name],
                name=f"node_{len(nodes)}",
                **{word: _attribute(onnx, word, v) for word, v in value.node.attributes.items()},
            )
        )
    described = [[_described(onnx, x) for x in values] for values in (inputs, results)]
    size = sum(len(tensor.raw_data) for tensor in constants)
    if size > _LARGEST_FILE:
        raise ValueError(f"the constants take {size:,} bytes and one ONNX file holds 2 GB: export the model in parts")
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, name, *described, initializer=constants, doc_string=text),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        producer_name="lowbit",
        producer_version=importlib.metadata.version("lowbit"),
        doc_string=text,
        ir_version=IR_VERSION,
    )
    onnx.helper.set_model_props(model, dict(properties))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"the graph that was written is no valid ONNX; please report it: {error}") from None
    return model.SerializeToString(deterministic=True)


def _named(inputs: Sequence[Value], outputs: Sequence[Value], names: Sequence[str]) -> list[Value]:
    """The results under their names; through Identity where one is an input, a constant or there twice.

    An ONNX file has one name space: the result ``state`` of a model whose input is called so too is ``state/out``.
    """
    taken = {x.name for x in inputs}
    results: list[Value] = []
    for x, wanted in zip(outputs, names, strict=True):
        if x.node is None or x.name:
            x = Value(x.shape, x.dtype, node=Node("Identity", [x], {}))
        while wanted in taken:
            wanted += "/out"
        x.name = wanted
        taken.add(wanted)
        results.append(x)
    return results


def _type(onnx: Any, dtype: Any) -> int:
    """ONNX's number of a dtype.

    Raises:
        ValueError: if it has none.
    """
    dtype = np.dtype(dtype)
    try:
        return onnx.helper.np_dtype_to_tensor_dtype(dtype)
    except (KeyError, ValueError):
        raise ValueError(f"arrays of {dtype} have no ONNX type; compute in float32 or int32") from None


def _attribute(onnx: Any, word: str, value: Any) -> Any:
    return _type(onnx, np.dtype(value)) if word == "to" else value


def _described(onnx: Any, x: Value) -> Any:
    return onnx.helper.make_tensor_value_info(x.name, _type(onnx, x.dtype), x.shape)


def _tensor(onnx: Any, name: str, array: np.ndarray) -> Any:
    """A constant, dense: two 4-bit codes a byte, the first in the low half."""
    tensor = onnx.TensorProto(name=name, data_type=_type(onnx, array.dtype), dims=array.shape)
    bits = bits_of(array.dtype)
    if array.dtype.kind == "b" or bits >= 8:
        tensor.raw_data = np.ascontiguousarray(array).tobytes()
        return tensor
    codes = array.astype(np.int8).ravel().astype(np.uint8) & ((1 << bits) - 1)
    per_byte = 8 // bits
    codes = np.pad(codes, (0, -len(codes) % per_byte)).reshape(-1, per_byte)
    tensor.raw_data = np.bitwise_or.reduce(codes << (bits * np.arange(per_byte, dtype=np.uint8)), axis=1).tobytes()
    return tensor
