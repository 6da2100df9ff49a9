"""A function as the graph behind an ONNX file."""

from typing import Any

import jax

from lowbit.export.onnx import finish, translate
from lowbit.export.onnx.graph import Graph, Value


def graph_of(function: Any, *args: Any) -> tuple[list[Value], list[Value]]:
    """The inputs and the outputs, every pass done."""
    g = Graph()
    inputs = [g.input(f"x{i}", x.shape, x.dtype) for i, x in enumerate(args)]
    outputs = translate.graph_of(g, jax.make_jaxpr(function)(*args), inputs)
    finish.finish(g, outputs)
    return inputs, outputs
