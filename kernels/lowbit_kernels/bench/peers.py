"""The peers: ONNX Runtime and torch on two threads, with the same shapes. Each is left out, by name, where not installed."""

# pyright: reportMissingImports=false
# Not a dependency, not even of development: `absent` says which of them a machine lacks.

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np


def absent() -> list[str]:
    """Peers that are not installed."""
    return [name for name in ("onnx", "onnxruntime", "torch") if importlib.util.find_spec(name) is None]


def _session(node, inputs, output, initializers, threads: int, version: int = 17):
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    graph = helper.make_graph(
        [node],
        "bench",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(*output)],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    opsets = [helper.make_opsetid("", version), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


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


def qlinear_conv(channels: int, size: int, kernel: int, groups: int, threads: int) -> Callable[[], object]:
    """ONNX Runtime's int8 convolution, NCHW, codes in and codes out."""
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    pads = [kernel // 2] * 4
    node = helper.make_node(
        "QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"], group=groups, pads=pads,
    )  # fmt: skip
    weights = {
        "xs": np.float32(0.02), "xz": np.uint8(128), "ws": np.full(channels, 0.01, np.float32),
        "wz": np.zeros(channels, np.int8), "ys": np.float32(0.1), "yz": np.uint8(128),
        "w": rng.integers(-127, 128, (channels, channels // groups, kernel, kernel), dtype=np.int8),
    }  # fmt: skip
    weights = {name: np.asarray(value) for name, value in weights.items()}
    shape = [1, channels, size, size]
    session = _session(node, [("x", TensorProto.UINT8, shape)], ("y", TensorProto.UINT8, shape), weights, threads)
    x = {"x": rng.integers(0, 256, shape, dtype=np.uint8)}
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
