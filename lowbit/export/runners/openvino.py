"""OpenVINO on this machine's CPU, one thread, from the ONNX form, in a process of its own."""

import json

import numpy as np

from lowbit.export.forms.onnx import EXACT_SUMS, FILE
from lowbit.export.reading import Bundle

from . import Inputs, Ran
from .litert import in_its_process
from .onnxruntime import checked, stored

OPTIONS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "INFERENCE_NUM_THREADS": 1,
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}
"""Floats stay float32. By default OpenVINO rounds the inputs of 4-bit weights to 8 bits by itself, and floats to bfloat16
where the processor has it."""


def _run(bundle: Bundle, inputs: Inputs) -> Ran:
    data = checked(bundle.file(FILE))
    results, options = len(bundle.manifest["outputs"]), json.dumps(OPTIONS | EXACT_SUMS)
    outputs, _ = in_its_process(data, results, inputs, "openvino", options, name=FILE, what="OpenVINO")
    count = sum(int(np.prod(entry["shape"])) for entry in bundle.manifest["weights"])
    return Ran(outputs, len(data), stored(data, count))


RUN = {"openvino": _run}
