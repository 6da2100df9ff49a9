"""OpenVINO on this machine's CPU, one thread, from the ONNX form."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowbit.export.bundle import Bundle
from lowbit.export.forms.onnx import FILE

from . import Ran
from .onnxruntime import stored

OPTIONS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": 1,
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}
"""Floats stay float32. By default OpenVINO rounds the inputs of 4-bit weights to 8 bits by itself, and floats to bfloat16
where the processor has it."""


def _run(bundle: Bundle, inputs: Sequence[np.ndarray]) -> Ran:
    openvino: Any = importlib.import_module("openvino")
    path = bundle.path / FILE
    data = path.read_bytes()
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", OPTIONS)
        results = compiled(dict(enumerate(inputs)))
    except RuntimeError as error:  # the class of all that its C++ side raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"OpenVINO rejects this model: {(lines or ['?'])[-1][:500]}") from None
    count = sum(int(np.prod(entry["shape"])) for entry in bundle.manifest["weights"])
    return Ran([np.asarray(results[port]) for port in compiled.outputs], len(data), stored(data, count))


RUN = {"openvino": _run}
