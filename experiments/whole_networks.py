"""Whole networks with their real weights, and the same quantized network in the runtimes of others, from its ONNX form.

ONNX Runtime and OpenVINO are no dependencies of an experiment's: `absent` says which of them a machine lacks.
"""

# pyright: reportMissingImports=false

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from experiments.models import blazeface, minilm, mlperf_tiny, mobilenet_v2, small_conv
from lowbit.export import forms, signature, stablehlo
from lowbit.packed.trees import QParams
from lowbit.plan.rows import Plan
from lowbit.rewrites.batch_norm import fold

TOKENS = 128
"""Of every sentence that MiniLM reads."""

Served = Callable[[], list[np.ndarray]]
"""One call of a peer: its results."""


@dataclasses.dataclass(frozen=True)
class Whole:
    """A network, ``fn(params, state, *inputs)``.

    Attributes:
        fn: the function, batch norms folded.
        params: of it.
        state: of it.
        inputs: of a batch, random.
    """

    fn: Callable[..., Any]
    params: Any
    state: Any
    inputs: Callable[[int], tuple[jax.Array, ...]]


def _images(*shape: int) -> Callable[[int], tuple[jax.Array, ...]]:
    return lambda batch: (jax.random.uniform(jax.random.key(1), (batch, *shape), minval=-1.0, maxval=1.0),)


def _tokens(batch: int) -> tuple[jax.Array, ...]:
    return jax.random.randint(jax.random.key(1), (batch, TOKENS), 1000, 20000), jnp.ones((batch, TOKENS), jnp.float32)


_LOADED: dict[str, tuple[Callable[[], Any], Callable[[int], tuple[jax.Array, ...]], bool]] = {
    "demo": (lambda: small_conv.build(0), _images(28, 28, 1), False),
    "ResNet-8": (lambda: mlperf_tiny.load("image_classification"), _images(32, 32, 3), True),
    "BlazeFace": (blazeface.load, _images(128, 128, 3), False),
    "MobileNetV2": (mobilenet_v2.load, _images(224, 224, 3), True),
    "MiniLM": (minilm.load, _tokens, False),
}

NAMES = tuple(_LOADED)
"""Of the networks; the demo's has random weights, the others those of their papers."""


def load(name: str) -> Whole:
    """Returns a network.

    Args:
        name: of `NAMES`.

    Raises:
        DataError: where the package with its weights is not installed.
    """
    made, inputs, has_norms = _LOADED[name]
    model = made()
    fn, params, state = model.fn, model.params, model.state
    if has_norms:
        fn, params, state = lb.chain(fold(inputs(1)[0]))(fn, params, state)
    return Whole(fn, params, state, inputs)


def onnx_file(whole: Whole, plan: Plan, qparams: QParams, inputs: Sequence[jax.Array]) -> bytes:
    """Returns what `lowbit.export` writes for ONNX Runtime and OpenVINO, without the rest of a bundle.

    Args:
        whole: the network.
        plan: its plan.
        qparams: its packed parameters.
        inputs: of the batch that the file is for.

    Raises:
        ImportError: if onnx is not installed.
        ValueError: for an operation without an ONNX form.
    """
    call = signature.read(whole.fn, (whole.state, *inputs), (0,), {})
    shapes = jax.eval_shape(lambda *leaves: lb.execute(whole.fn, plan)(qparams, *call.arguments(leaves)), *call.leaves)
    outputs = signature.described(signature.output_names(shapes), jax.tree.leaves(shapes))
    lowered = forms.Lowered(
        whole.fn, plan, qparams, call, whole.fn, signature.described(call.names, call.leaves), outputs, (), (),
        has_integer_io=False, name="whole", version=stablehlo.VERSION,
    )  # fmt: skip
    (content,) = forms.write("onnx", lowered).values()
    assert isinstance(content, bytes)
    return content


def absent() -> list[str]:
    """Returns which of the peers, and of what writes their files, are not installed."""
    return [name for name in ("onnx", "onnxruntime", "openvino") if importlib.util.find_spec(name) is None]


def onnxruntime_call(model: bytes, inputs: Sequence[jax.Array], threads: int) -> Served:
    """Returns a call of ONNX Runtime as it comes, on the CPU.

    Args:
        model: an ONNX file.
        inputs: of the call.
        threads: that it uses.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    given = dict(zip([entry.name for entry in session.get_inputs()], map(np.asarray, inputs), strict=True))
    return functools.partial(session.run, None, given)


def openvino_call(model: bytes, inputs: Sequence[jax.Array], threads: int) -> Served:
    """Returns a call of OpenVINO on the CPU: its own int8, floats in float32 as in the other columns.

    Args:
        model: an ONNX file.
        inputs: of the call.
        threads: that it uses.
    """
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    request = core.compile_model(core.read_model(model), "CPU", options).create_infer_request()
    for i, x in enumerate(inputs):
        request.set_input_tensor(i, openvino.Tensor(np.array(x)))
    count = len(request.model_outputs)

    def call() -> list[np.ndarray]:
        request.infer()
        return [request.get_output_tensor(i).data for i in range(count)]

    return call


PEERS: dict[str, Callable[[bytes, Sequence[jax.Array], int], Served]] = {
    "onnxruntime": onnxruntime_call,
    "openvino": openvino_call,
}
"""By the package."""
