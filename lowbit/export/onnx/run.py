"""ONNX Runtime and OpenVINO on this machine's CPU, one thread; OpenVINO in a process of its own."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.export.litert.run import in_its_process
from lowbit.export.onnx.serialize import library
from lowbit.export.onnx.write import EXACT_SUMS, FILE, SESSION_OPTIONS
from lowbit.export.reading import Bundle
from lowbit.export.runners import Inputs, Ran, Run
from lowbit.export.storage import Stored


def session(model: Path | bytes, *, optimized: Path | None = None) -> Any:
    """Returns an inference session as `verify` runs it.

    Args:
        model: the file, or its bytes.
        optimized: where ONNX Runtime shall write what it made of the graph.
    """
    onnxruntime: Any = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for name, value in SESSION_OPTIONS.items():
        options.add_session_config_entry(name, value)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # noqa: BLE001 - onnxruntime raises a class of its own per status
        raise ValueError(f"ONNX Runtime rejects this model: {(str(error).splitlines() or ['?'])[0][:500]}") from None


def stored(data: bytes, count: int) -> tuple[Stored, ...] | None:
    """Returns the constants that are dequantized; None where those are fewer than ``count`` elements.

    Args:
        data: the file.
        count: how many weights are quantized.
    """
    onnx = library()
    graph = onnx.load_from_string(data).graph
    known = {tensor.name: tensor for tensor in graph.initializer}
    looked_up = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Gather"}
    taken = {node.input[0] for node in graph.node if node.op_type in ("DequantizeLinear", "Cast")}
    tensors = [known[name] for name in {looked_up.get(name, name) for name in taken} if name in known]
    tensors = [tensor for tensor in tensors if tensor.data_type != onnx.TensorProto.INT32]  # biases
    integers = tuple(Stored(int(np.prod(tensor.dims)), 8 * len(tensor.raw_data)) for tensor in tensors)
    return integers if sum(each.elements for each in integers) >= count else None


_DOMAINS = ("", "ai.onnx")
"""Of operators that lowbit writes; others name code outside the file."""


def checked(data: bytes) -> bytes:
    """Returns an ONNX file as it is.

    Raises:
        ValueError: if it names what lowbit does not write: operators of other domains, functions, or files beside it.
    """
    onnx = library()
    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # noqa: BLE001 - protobuf raises classes of its own
        raise ValueError(f"this is no ONNX file: {(str(error).splitlines() or ['?'])[0][:200]}") from None
    graphs, tensors = [model.graph], []
    while graphs:
        graph = graphs.pop()
        tensors += [
            *graph.initializer,
            *(t for sparse in graph.sparse_initializer for t in (sparse.values, sparse.indices)),
        ]
        for node in graph.node:
            if node.domain not in _DOMAINS:
                raise ValueError(f"it calls {node.domain}.{node.op_type}, which lowbit does not write: not run")
            for attribute in node.attribute:
                graphs += [attribute.g, *attribute.graphs]
                tensors += [attribute.t, *attribute.tensors]
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    tensors += [sparse.values, sparse.indices]
    if model.functions or any(tensor.data_location or tensor.external_data for tensor in tensors):
        raise ValueError("it has functions, or names files beside it, which lowbit does not write: not run")
    return data


def _run_onnxruntime(bundle: Bundle, inputs: Inputs) -> Ran:
    data = checked(bundle.file(FILE))
    ran = session(data)
    names = [entry.name for entry in ran.get_inputs()]
    outputs = [[np.asarray(y) for y in ran.run(None, dict(zip(names, case, strict=True)))] for case in inputs]
    count = sum(int(np.prod(entry["shape"])) for entry in bundle.manifest["weights"])
    return Ran(outputs, len(data), stored(data, count))


OPTIONS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": 1,
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}
"""Floats stay float32. By default OpenVINO rounds the inputs of 4-bit weights to 8 bits by itself, and floats to bfloat16
where the processor has it."""


def _run_openvino(bundle: Bundle, inputs: Inputs) -> Ran:
    data = checked(bundle.file(FILE))
    results, options = len(bundle.manifest["outputs"]), json.dumps(OPTIONS | EXACT_SUMS)
    outputs, _ = in_its_process(data, results, inputs, "openvino", options, name=FILE, what="OpenVINO")
    count = sum(int(np.prod(entry["shape"])) for entry in bundle.manifest["weights"])
    return Ran(outputs, len(data), stored(data, count))


RUN: dict[str, Run] = {"onnxruntime": _run_onnxruntime, "openvino": _run_openvino}
