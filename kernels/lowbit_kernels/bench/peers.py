"""The peers: ONNX Runtime, OpenVINO and torch, with the same shapes and threads. Each is left out, by name, where not installed."""

# pyright: reportMissingImports=false
# Not a dependency, not even of development: `absent` says which of them a machine lacks.

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit_kernels.shapes import ConvShape


def absent() -> list[str]:
    """Peers that are not installed."""
    return [name for name in ("onnx", "onnxruntime", "openvino", "torch") if importlib.util.find_spec(name) is None]


def _model(nodes, inputs, output, initializers, version: int = 17) -> bytes:
    import onnx
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(*output)],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    opsets = [helper.make_opsetid("", version), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _session(node, inputs, output, initializers, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    model = _model([node], inputs, output, initializers)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def matmul_nbits(rows: int, length: int, out: int, group: int, accuracy: int, threads: int) -> Callable[[], object]:
    """ONNX Runtime's 4-bit matmul; accuracy 4 computes in int8, 1 in float32."""
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft",
        K=length, N=out, bits=4, block_size=group, accuracy_level=accuracy,
    )  # fmt: skip
    weights = {
        "w": rng.integers(0, 256, (out, length // group, group // 2), dtype=np.uint8),
        "s": rng.random(out * length // group, dtype=np.float32),
    }
    session = _session(
        node, [("x", TensorProto.FLOAT, [rows, length])], ("y", TensorProto.FLOAT, [rows, out]), weights, threads
    )
    x = {"x": rng.standard_normal((rows, length)).astype(np.float32)}
    return lambda: session.run(None, x)


def matmul_integer(rows: int, length: int, out: int, threads: int) -> Callable[[], object]:
    """ONNX Runtime's int8 matmul: uint8 by int8 into int32, without quantizing x or scaling y."""
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    weights = {"w": rng.integers(-128, 128, (length, out), dtype=np.int8)}
    session = _session(
        node, [("x", TensorProto.UINT8, [rows, length])], ("y", TensorProto.INT32, [rows, out]), weights, threads
    )
    x = {"x": rng.integers(0, 256, (rows, length), dtype=np.uint8)}
    return lambda: session.run(None, x)


def openvino_int8(rows: int, length: int, out: int, threads: int) -> Callable[[], object]:
    """OpenVINO's int8 matmul: x quantized on a static grid, one scale a channel, float32 out."""
    import openvino
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wf"], axis=1),
        helper.make_node("MatMul", ["xf", "wf"], ["y"]),
    ]
    weights = {
        "xs": np.asarray(np.float32(0.03)), "xz": np.asarray(np.uint8(128)),
        "w": rng.integers(-127, 128, (length, out), dtype=np.int8), "ws": np.full(out, 0.01, np.float32),
    }  # fmt: skip
    ends = [("x", TensorProto.FLOAT, [rows, length])], ("y", TensorProto.FLOAT, [rows, out])
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(_model(nodes, *ends, weights)),
        "CPU",
        {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"},
    )
    request = compiled.create_infer_request()
    x = rng.standard_normal((rows, length)).astype(np.float32)
    return lambda: request.infer([x], share_inputs=True, share_outputs=True)


def qlinear_conv(shape: ConvShape, threads: int) -> Callable[[], object]:
    """ONNX Runtime's int8 convolution, NCHW, codes in and codes out."""
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    channels, kernel = shape.channels, shape.kernel
    node = helper.make_node(
        "QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"], group=shape.groups,
        auto_pad="SAME_UPPER", strides=[shape.stride] * 2,
    )  # fmt: skip
    weights = {
        "xs": np.float32(0.02), "xz": np.uint8(128), "ws": np.full(shape.out, 0.01, np.float32),
        "wz": np.zeros(shape.out, np.int8), "ys": np.float32(0.1), "yz": np.uint8(128),
        "w": rng.integers(-127, 128, (shape.out, channels // shape.groups, kernel, kernel), dtype=np.int8),
    }  # fmt: skip
    weights = {name: np.asarray(value) for name, value in weights.items()}
    size = [shape.batch, channels, shape.height, shape.width]
    out = [shape.batch, shape.out, -(-shape.height // shape.stride), -(-shape.width // shape.stride)]
    session = _session(node, [("x", TensorProto.UINT8, size)], ("y", TensorProto.UINT8, out), weights, threads)
    x = {"x": rng.integers(0, 256, size, dtype=np.uint8)}
    return lambda: session.run(None, x)


def _torch(threads: int) -> Any:
    """The module; the kernels below are private to it, and the only ones it has."""
    import torch

    torch.set_num_threads(threads)
    return torch


def torch_int8(rows: int, length: int, out: int, threads: int) -> Callable[[], object]:
    """Torch's int8 matmul into int32."""
    torch = _torch(threads)
    x = torch.randint(-128, 127, (rows, length), dtype=torch.int8)
    w = torch.randint(-128, 127, (length, out), dtype=torch.int8)
    return lambda: torch._int_mm(x, w)


def torch_int4(rows: int, length: int, out: int, group: int, threads: int) -> Callable[[], object]:
    """Torch's weight-only 4-bit matmul, bfloat16 activations."""
    torch = _torch(threads)
    x = torch.randn(rows, length, dtype=torch.bfloat16)
    packed = torch._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, (out, length), dtype=torch.int32), 1)
    scales = torch.randn(length // group, out, 2, dtype=torch.bfloat16)
    return lambda: torch._weight_int4pack_mm_for_cpu(x, packed, group, scales)
