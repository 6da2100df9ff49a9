"""The edge tools, each in a process of its own: the converter and some runtimes crash on models that they do not take.

Run as ``python worker.py <command> <paths>``; imports nothing of lowbit. Commands: ``convert artifact model contents``,
``litert model inputs outputs count``, ``tflm model inputs outputs count``, ``openvino model inputs outputs count options``,
``vela model folder accelerator``.
"""

# pyright: reportMissingImports=false
import json
import sys
from typing import Any


def convert(artifact: str, model: str, contents: str) -> None:
    """Converts a StableHLO artifact, and writes as JSON what is in the result."""
    from litert_converter import converter_api_ext as api
    from litert_converter.mlir import ir, passmanager
    from litert_converter.mlir.dialects import stablehlo

    context = ir.Context()
    api.prepare_mlir_context(context)
    with context, ir.Location.unknown(), open(artifact, "rb") as file:
        module = ir.Module.parse(stablehlo.deserialize_portable_artifact_str(file.read()))
        config = api.ConvertToTFLConfig()
        config.qdq_conversion_mode = "STATIC"
        config.strict_qdq_mode = True  # without it composites and float weights are left, in silence
        api.run_convert_to_tfl_passes(module, passmanager.PassManager.parse("builtin.module()"), config)
        data = api.export_flatbuffer_to_bytes(module.operation)
    with open(model, "wb") as file:
        file.write(data)
    with open(contents, "w") as file:
        json.dump(_contents(data), file)


def _contents(data: bytes) -> dict[str, Any]:
    from litert_converter import schema_py_generated as schema

    def words(enum: Any) -> dict[int, str]:
        return {value: name for name, value in vars(enum).items() if not name.startswith("_")}

    kinds, operators = words(schema.TensorType), words(schema.BuiltinOperator)
    model = schema.ModelT.InitFromPackedBuf(data)
    (graph, *_) = model.subgraphs

    def tensor(t: Any) -> dict[str, Any]:
        q, buffer = t.quantization, model.buffers[t.buffer].data
        scale, zero = (None, None) if q is None else (q.scale, q.zeroPoint)
        return {
            "type": kinds[t.type],
            "shape": [] if t.shape is None else [int(n) for n in t.shape],
            "constant_bytes": 0 if buffer is None else len(buffer),
            "scale": [] if scale is None else [float(s) for s in scale],
            "zero_point": [] if zero is None else [int(z) for z in zero],
        }

    def operator(op: Any) -> dict[str, Any]:
        code = model.operatorCodes[op.opcodeIndex]
        name = operators[max(code.builtinCode, code.deprecatedBuiltinCode)]
        ins = [int(i) for i in op.inputs if i >= 0]
        return {"name": name, "inputs": ins, "outputs": [int(i) for i in op.outputs]}

    return {
        "operators": [operator(op) for op in graph.operators],
        "tensors": [tensor(t) for t in graph.tensors],
        "inputs": [int(i) for i in graph.inputs],
        "outputs": [int(i) for i in graph.outputs],
    }


def litert(model: str, inputs: str, outputs: str, count: str) -> None:
    """Runs a model on LiteRT: XNNPACK where it can, the built-in kernels where not."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=model)
    interpreter.allocate_tensors()
    ins, outs = interpreter.get_input_details(), interpreter.get_output_details()

    def call(given: list[Any]) -> list[Any]:
        for detail, x in zip(ins, given, strict=True):
            interpreter.set_tensor(detail["index"], x)
        interpreter.invoke()
        return [interpreter.get_tensor(outs[i]["index"]) for i in range(int(count))]

    _every_case(call, inputs, outputs)


def _every_case(call: Any, inputs: str, outputs: str) -> None:
    """Writes what a function of flat inputs gives for every call: arrays ``case<n>_<i>`` in both files."""
    import numpy as np

    results_by_name: dict[str, Any] = {}
    with np.load(inputs) as arrays:
        size: dict[int, int] = {}
        for name in arrays.files:
            n = int(name.removeprefix("case").split("_")[0])
            size[n] = size.get(n, 0) + 1
        for n, length in size.items():
            results = call([arrays[f"case{n}_{i}"] for i in range(length)])
            results_by_name |= {f"case{n}_{i}": y for i, y in enumerate(results)}
    np.savez(outputs, **results_by_name)


_ARENA = 1 << 26
"""Bytes offered to TFLite-Micro; what it takes of them is printed, and reported."""


def tflm(model: str, inputs: str, outputs: str, count: str) -> None:
    """Runs a model on TFLite-Micro; its own words on standard error say what it allocated."""
    from tflite_micro import runtime

    with open(model, "rb") as file:
        interpreter = runtime.Interpreter.from_bytes(file.read(), arena_size=_ARENA)

    def call(given: list[Any]) -> list[Any]:
        for i, x in enumerate(given):
            interpreter.set_input(x, i)
        interpreter.invoke()
        return [interpreter.get_output(i) for i in range(int(count))]

    _every_case(call, inputs, outputs)
    interpreter.print_allocations()


def openvino(model: str, inputs: str, outputs: str, count: str, options: str) -> None:
    """Runs an ONNX model on OpenVINO, whose package for telemetry, which it imports where it finds it, is kept out."""
    sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType] - Python's own way to say: not there
    from openvino import Core

    compiled = Core().compile_model(model, "CPU", json.loads(options))

    def call(given: list[Any]) -> list[Any]:
        results = compiled(dict(enumerate(given)))
        return [results[compiled.outputs[i]] for i in range(int(count))]

    _every_case(call, inputs, outputs)


def vela(model: str, folder: str, accelerator: str) -> None:
    """Compiles a model for an Ethos-U and leaves Vela's files in a folder; its summary is on standard output."""
    from ethosu.vela.vela import main

    main([model, "--accelerator-config", accelerator, "--output-dir", folder])


if __name__ == "__main__":
    commands = {"convert": convert, "litert": litert, "tflm": tflm, "openvino": openvino, "vela": vela}
    commands[sys.argv[1]](*sys.argv[2:])
