"""OpenVINO on this machine's CPU, one thread, from the ONNX form, in a process of its own."""

import json
import platform
from pathlib import Path

import numpy as np

from lowbit.export.forms.onnx import FILE, WITHOUT_VNNI
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


def saturates(machine: str, features: str) -> bool:
    """Returns whether OpenVINO's sums of 8-bit products saturate: on x86 without instructions that sum four of them at once.

    Args:
        machine: as `platform.machine` says.
        features: the text that names the processor's.
    """
    return machine.lower() in ("x86_64", "amd64") and not any(word in features for word in ("vnni", "amx_int8"))


def _options() -> dict[str, str | int]:
    found = Path("/proc/cpuinfo")
    features = found.read_text() if found.exists() else ""
    return OPTIONS | (WITHOUT_VNNI if saturates(platform.machine(), features) else {})


def _run(bundle: Bundle, inputs: Inputs) -> Ran:
    data = checked(bundle.file(FILE))
    results, options = len(bundle.manifest["outputs"]), json.dumps(_options())
    outputs, _ = in_its_process(data, results, inputs, "openvino", options, name=FILE, what="OpenVINO")
    count = sum(int(np.prod(entry["shape"])) for entry in bundle.manifest["weights"])
    return Ran(outputs, len(data), stored(data, count))


RUN = {"openvino": _run}
