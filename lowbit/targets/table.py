"""What each target can hold: data, in one place, for the exporter and for a search over bits.

A target takes an operation if its weight and its input are among what the table lists for that primitive. What is not
listed was tried and failed, or gave wrong numbers without an error; the note says which. A file beside this one that has
``TARGETS`` adds its own.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Sequence

import lowbit.targets as package
from lowbit.core.moved import moved

from .target import Holds, Target

_EVERYTHING = {name: Holds() for name in ("dot_general", "conv_general_dilated", "gather")}
_XNNPACK = {
    "dot_general": Holds(
        ("int2", "int3", "int4", "int5", "int6", "int7", "int8"),
        {"*": ("tensor", "channel")},
        has_affine_weights=False,
        inputs=("int8",),
        input_granularity=("tensor",),
        has_dynamic_inputs=False,
        note="int16 inputs convert with 32-bit biases, which the runtime refuses",
    ),
    "conv_general_dilated": Holds(
        ("int3", "int4", "int5", "int6", "int7", "int8"),
        {"*": ("tensor", "channel")},
        has_affine_weights=False,
        inputs=("int8",),
        input_granularity=("tensor",),
        has_dynamic_inputs=False,
        note="a convolution with 2-bit weights does not convert",
    ),
}
_MICRO = {
    "dot_general": dataclasses.replace(
        _XNNPACK["dot_general"],
        weights=("int3", "int4", "int5", "int6", "int7", "int8"),
        weight_granularity={"int3": ("tensor",), "int4": ("tensor",), "*": ("tensor", "channel")},
        note="no 2-bit type; 4-bit weights of a dense layer share one scale",
    ),
    "conv_general_dilated": dataclasses.replace(_XNNPACK["conv_general_dilated"], note="no 2-bit type"),
}
_VELA = {
    name: dataclasses.replace(holds, weights=("int5", "int6", "int7", "int8"), note="4-bit weights crash the compiler")
    for name, holds in _XNNPACK.items()
}
_FLOAT = "LiteRT has no integer kernel for it, and would compute it in floats"
_NO_KERNEL = {
    "norm": _FLOAT,
    "softmax": "LiteRT's integer softmax writes steps of 1/256 only",
    **dict.fromkeys(
        ("exp", "exp2", "expm1", "erf", "erfc", "log", "log1p", "sqrt", "rsqrt", "pow", "sin", "cos"), _FLOAT
    ),
}
_NOT_MICRO = {
    **_NO_KERNEL,
    "select": "TFLite-Micro has no kernel that selects integers",
    "tanh": "TFLite-Micro computes it in steps of 1/128 whatever the grid: wrong numbers, no error",
    "logistic": "TFLite-Micro computes it in steps of 1/256 whatever the grid: wrong numbers, no error",
}
_ONNX = {
    name: Holds(
        ("int3", "int4", "int5", "int6", "int7", "int8", "uint8"),
        {"*": granularity},
        inputs=("float", "int3", "int4", "int5", "int6", "int7", "int8", "uint8"),
        note="ONNX Runtime has no 2-bit type",
    )
    for name, granularity in (
        ("dot_general", ("tensor", "channel", "group")),
        ("conv_general_dilated", ("tensor", "channel")),
        ("gather", ("tensor", "channel", "group")),
    )
}
_C = {
    name: Holds(
        ("int2", "int3", "int4", "int5", "int6", "int7", "int8"),
        {"*": granularity},
        has_affine_weights=name == "dot_general",
        inputs=("int2", "int3", "int4", "int5", "int6", "int7", "int8", "int16"),
        input_granularity=("tensor",),
        has_dynamic_inputs=False,
        note="integers only",
    )
    for name, granularity in (
        ("dot_general", ("tensor", "channel", "group")),
        ("conv_general_dilated", ("tensor", "channel")),
        ("gather", ("tensor", "channel")),
    )
}
_TYPED = {
    name: Holds(
        ("int2", "int3", "int4", "int5", "int6", "int7", "int8"),
        {"*": ("tensor", "channel")},
        has_affine_weights=False,
        inputs=("float", "int2", "int3", "int4", "int5", "int6", "int7", "int8"),
        input_granularity=("tensor",),
        has_dynamic_inputs=False,
        note="a right operand has no zero point, and scales along one axis",
    )
    for name in ("dot_general", "conv_general_dilated")
}
_DYNAMIC_RESHAPE = {
    "stablehlo.dynamic_reshape": "reshape an array with a symbolic dimension: contract both axes in one einsum, take a mean"
}
_AARCH64_INSTALL = (
    "pip install 'lowbit[export]'; apt install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross; pip install --no-deps "
    "--only-binary=:all: --platform manylinux_2_28_aarch64 --target ~/.cache/lowbit/tools/iree-aarch64 iree-base-runtime"
)
_AARCH64_PROGRAMS = "qemu-aarch64", "aarch64-linux-gnu-gcc"  # the second comes with the libraries that the first loads
_AARCH64_FILES = ("iree-aarch64/iree/_runtime_libs/iree-run-module",)
_BYTES = Holds(("int5", "int6", "int7", "int8", "uint8"), note="2-bit and 4-bit views of memory do not compile")
_ROUNDED = "exact sums; rescaled in float32, zero point added before rounding to even, as StableHLO lowers these types"

_OWN = (
    Target("xla", "served", "jaxlib", ("jax",), "pip install lowbit", _EVERYTHING, has_symbolic=True),
    Target(
        "interpreter", "served", "jaxlib", ("jaxlib",), "pip install lowbit", _EVERYTHING,
        note="of StableHLO; before jax 0.12 its integer convolution wraps to 8 bits and is not run", has_symbolic=True,
    ),
    Target("iree", "served", "iree-base-compiler", ("iree.compiler", "iree.runtime"), "pip install 'lowbit[export]'", _EVERYTHING,
        has_symbolic=True, rejects=_DYNAMIC_RESHAPE,
    ),
    Target(
        "iree-aarch64", "served", "iree-base-compiler", ("iree.compiler",), _AARCH64_INSTALL, _EVERYTHING,
        has_symbolic=True, rejects=_DYNAMIC_RESHAPE, programs=_AARCH64_PROGRAMS, files=_AARCH64_FILES,
        note="a Cortex-A76 under an emulator of 64-bit Arm",
    ),
    Target(
        "iree-vmvx", "served", "iree-base-compiler", ("iree.compiler", "iree.runtime"), "pip install 'lowbit[export]'",
        dict.fromkeys(("dot_general", "conv_general_dilated"), _BYTES),
        note="portable bytecode",
    ),
    Target(
        "xla-universal", "universal", "jaxlib", ("jax",), "pip install lowbit", _EVERYTHING, steps=1,
        note="float operations on integer weights: sums are rounded",
    ),
    Target(
        "iree-universal", "universal", "iree-base-compiler", ("iree.compiler", "iree.runtime"), "pip install 'lowbit[export]'",
        _EVERYTHING, steps=1, note="float operations on integer weights: sums are rounded",
    ),
    *(Target(f"{name}-quantized", "quantized", "jaxlib", ("jax",), "pip install lowbit", _TYPED, steps=1, rounding="exact", note=_ROUNDED)
      for name in ("xla", "interpreter")),
    Target(
        "iree-quantized", "quantized", "iree-base-compiler", ("iree.compiler", "iree.runtime"), "pip install 'lowbit[export]'",
        {name: dataclasses.replace(holds, weights=_BYTES.weights[:4], note="it rejects some shapes of 4-bit weights behind a type") for name, holds in _TYPED.items()},
        steps=1, rounding="exact", note=_ROUNDED,
    ),
    Target(
        "iree-aarch64-universal", "universal", "iree-base-compiler", ("iree.compiler",), _AARCH64_INSTALL, _EVERYTHING,
        steps=1, programs=_AARCH64_PROGRAMS, files=_AARCH64_FILES,
        note="float operations on integer weights, on a Cortex-A76 under an emulator",
    ),
    Target(
        "litert", "litert", "ai-edge-litert", ("litert_converter", "ai_edge_litert", "tflite"),
        "pip install 'lowbit[edge]'", _XNNPACK, steps=1, is_full_integer=True, rounding="exact",
        note="8-bit kernels round once, to even; 4-bit ones are off by a step now and then. What has no integer kernel is float",
    ),
    Target(
        "tflm", "litert", "tflite-micro", ("litert_converter", "tflite_micro", "tflite"),
        "pip install 'lowbit[edge]'", _MICRO, steps=1, is_full_integer=True,
        rounding="gemmlowp_double", refuses=_NOT_MICRO, note="TFLite-Micro, the runtime of microcontrollers",
    ),
    Target(
        "onnxruntime", "onnx", "onnxruntime", ("onnx", "onnxruntime"), "pip install 'lowbit[onnx]'", _ONNX, steps=1, widths=(4, 8),
        note="its kernels take biases of 32 bits and divide by scales; 4-bit weights with float inputs: it rounds the inputs to "
        "8 bits by itself unless session.qdq_matmulnbits_accuracy_level is 1, as here; session.x64quantprecision is 1, too",
    ),
    Target(
        "openvino", "onnx", "openvino", ("onnx", "openvino"), "pip install 'lowbit[edge]'", _ONNX, steps=1, widths=(4, 8),
        note="the ONNX form; 4-bit weights with 8-bit inputs are unpacked to bytes when loading, with float inputs they are not",
    ),
    Target(
        "c", "c", "cc", (), "apt install gcc", _C, is_full_integer=True, small_bytes=0, programs=("cc", "size", "nm"),
        note="C99, compiled for this machine",
    ),
    Target(
        "c-aarch64", "c", "aarch64-linux-gnu-gcc", (), "apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user",
        _C, is_full_integer=True, small_bytes=0,
        programs=("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-size", "aarch64-linux-gnu-nm", "qemu-aarch64"),
        note="C99 under an emulator of 64-bit Arm",
    ),
    Target(
        "cortex-m4", "c", "arm-none-eabi-gcc", (), "apt install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm",
        _C, is_full_integer=True, small_bytes=0,
        programs=("arm-none-eabi-gcc", "arm-none-eabi-size", "arm-none-eabi-nm", "qemu-system-arm"),
        note="C99 on an emulated microcontroller",
    ),
    Target(
        "vela", "litert", "ethos-u-vela", ("litert_converter", "ethosu.vela", "tflite"),
        "pip install 'lowbit[edge]'", _VELA, is_full_integer=True, refuses=_NO_KERNEL,
        note="Arm Ethos-U; a compiler's report, nothing runs: reported, not compared. Quantizing arguments stays on the CPU",
    ),
)  # fmt: skip


def _others() -> tuple[Target, ...]:
    """The targets of the files beside this one, by the names of those."""
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names if name not in _NOT_TARGETS]
    return tuple(target for module in modules for target in module.TARGETS)


_NOT_TARGETS = ("refusals", "table", "target")
TARGETS = {target.name: target for target in (*_OWN, *_others())}
"""All targets by name."""


def lookup(names: Sequence[str]) -> tuple[Target, ...]:
    """Returns targets by name.

    Raises:
        TypeError: if ``names`` is one text.
        ValueError: for an unknown name.
    """
    if isinstance(names, str):
        raise TypeError(f"targets must be a list of names, such as [{names!r}], got {names!r}")
    for name in names:
        if name not in TARGETS:
            raise ValueError(f"unknown target {name!r}; there are: {', '.join(TARGETS)}")
    return tuple(TARGETS[name] for name in dict.fromkeys(names))


__getattr__ = moved(__name__, {"INLINED_BYTES": "lowbit.targets.target.INLINED_BYTES"})
