"""``onnx/model.onnx``: the universal form with QuantizeLinear and DequantizeLinear, for ONNX Runtime and whoever reads ONNX.

Channels first, operators in the patterns that runtimes fuse: see `lowbit.export.onnx`. The integers and scales are the
served ones. Biases of integer products are rounded to 32 bits, and ONNX divides where lowbit multiplies by a reciprocal:
results may be a step off.
"""

from collections.abc import Mapping

from lowbit.core.qtensor import QTensor
from lowbit.export.forms import Lowered
from lowbit.export.onnx import finish, serialize, translate
from lowbit.export.onnx.graph import Graph
from lowbit.export.sites import ROUNDING
from lowbit.export.universal import universal_jaxpr

TOOLS = ("onnx",)
FILE = "onnx/model.onnx"

SESSION_OPTIONS = {
    "session.qdq_matmulnbits_accuracy_level": "1",  # the inputs of 4-bit weights stay float32; by default it rounds them to 8 bits
    # On x86 without VNNI, sums of 8-bit products saturate at 16 bits by default: 5 steps off for a CNN of two convolutions.
    "session.x64quantprecision": "1",
}
"""Options of ONNX Runtime without which it computes something else."""

EXACT_SUMS = {"LP_TRANSFORMS_MODE": "NO"}
"""Options of OpenVINO: its sums of bytes in integers are not the sums. On x86 without VNNI they saturate at 16 bits, 35 steps off for
two dense layers; with it (AMD Zen 5, OpenVINO 2026.4) two dense layers on five rows are 255 steps off, on 64 rows exact. With this it
computes them in float32, exactly."""

RUNTIMES = {"onnxruntime": {"session_options": SESSION_OPTIONS}, "openvino": {"options": EXACT_SUMS}}
"""What the manifest says to set: ``options.add_session_config_entry(name, value)``; ``core.compile_model(model, "CPU", options)``."""


def write(lowered: Lowered) -> Mapping[str, bytes]:
    """Returns the file.

    Raises:
        ImportError: if the onnx package is not installed.
        ValueError: for an operation that has no ONNX form, or one that cannot hold the model.
    """
    serialize.library()
    for path, q in lowered.qparams.weights().items():
        _check(path, q)
    g = Graph()
    inputs = [g.input(entry["name"], entry["shape"], entry["dtype"]) for entry in lowered.inputs]
    outputs = translate.graph_of(g, universal_jaxpr(lowered), inputs)
    finish.finish(g, outputs)
    names = [entry["name"] for entry in lowered.outputs]
    weights = sorted({q.spec.text for q in lowered.qparams.weights().values()})
    data = serialize.serialize(
        inputs,
        outputs,
        names,
        name=lowered.name,
        text=f"A quantized model exported by lowbit. Weights: {', '.join(weights) or 'none'}.",
        properties={
            "lowbit.rounding": lowered.plan.rounding or ROUNDING,
            "lowbit.session_options": ", ".join(f"{name}={value}" for name, value in SESSION_OPTIONS.items()),
        },
    )
    return {FILE: data}


def _check(path: str, q: QTensor) -> None:
    if q.spec.format.is_integer and q.spec.format.bits == 2:
        raise ValueError(
            f"{path} has 2-bit weights, and opset {serialize.OPSET} has integers of 4 bits and more: quantize it to int3 "
            f"or int4 (4 bits each in the file), or leave the target out"
        )
