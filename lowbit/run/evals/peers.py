"""Time of a call beside other runtimes, which get the file that `lowbit.export` writes of the same plan for them."""

# pyright: reportMissingImports=false
# Peers are no dependencies: `require` says which of them this machine lacks.

import dataclasses
import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import lowbit as lb
from lowbit.export import forms, signature, stablehlo
from lowbit.run.experiment import FLOAT
from lowbit.run.measure import REST, instruction_set, ratio
from lowbit.run.pieces import Piece

from .column import Eval
from .latency import RUNTIME, Timed, called, columns, implementations, in_turns, inputs

Served = Callable[[], list[np.ndarray]]
"""One call of a peer: its results."""


def peers(
    *names: str, batches: Sequence[int] = (1,), seconds: float = 4.0, threads: int = 2, rest: float = REST
) -> Eval:
    """Returns an eval: `latency` of float and of every method, interleaved with the same methods in other runtimes.

    A peer gets the ONNX file of a method's plan: operations on integers between floats, or full-integer where the method is.
    Kept are times as `latency` keeps them, by runtime; what a peer's faster method takes of `lowbit.execute`'s time, as
    ``peer_takes`` (float's under ``float``); and how far its results are from lowbit's of the same plan, in parts of the largest.

    Args:
        *names: ``onnxruntime``, ``openvino``; none means both.
        batches: samples of a call, each measured by itself.
        seconds: of measuring, for every batch.
        threads: of each peer; XLA and lowbit take the cores that the process may use.
        rest: seconds of sleep before a turn, in which the threads of the one before fall asleep.

    Raises:
        ValueError: for an unknown name.
    """
    names = names or tuple(PEERS)
    if unknown := [name for name in names if name not in PEERS]:
        raise ValueError(f"peers: there is no {unknown[0]!r}; there are {', '.join(PEERS)}")
    measure = _Peers(names, tuple(batches), seconds, threads, rest)
    shown = columns(batches)
    for name in names:
        shown += columns(batches, name, _SAID[name])
    return Eval(
        "peers",
        measure,
        shown,
        functools.partial(require, names),
        functools.partial(_depends, names),
        is_together=True,
    )


def require(names: Sequence[str]) -> None:
    """Raises ImportError, naming what to install, if a peer is missing, or what writes its file."""
    absent = [name for name in ("onnx", *names) if importlib.util.find_spec(name) is None]
    if absent:
        raise ImportError(
            f"the eval peers needs {' and '.join(absent)}: pip install {' '.join(absent)}, or leave it out with --without peers"
        )


def versions(names: Sequence[str]) -> dict[str, str]:
    """Returns the versions of peers and of what writes their file."""
    return {name: importlib.metadata.version(name) for name in ("onnx", *names)}


def _depends(names: Sequence[str]) -> Any:
    return versions(names), instruction_set()


@dataclasses.dataclass(frozen=True)
class _Peers:
    names: tuple[str, ...]
    batches: tuple[int, ...]
    seconds: float
    threads: int
    rest: float

    def __call__(self, pieces: Mapping[str, Piece]) -> Mapping[str, Any]:
        values_of: dict[str, dict[str, Any]] = {name: {} for name in pieces}
        for batch in self.batches:
            for name, numbers in self._of(pieces, batch).items():
                for key, values in numbers.items():
                    for runtime, value in values.items():
                        values_of[name].setdefault(key, {}).setdefault(runtime, {})[f"b{batch}"] = value
        known = {"peers": versions(self.names)}
        return {name: values | known | implementations(pieces[name]) for name, values in values_of.items()}

    def _of(self, pieces: Mapping[str, Piece], batch: int) -> dict[str, dict[str, Any]]:
        """By method and kind of number, of one batch."""
        calls: dict[str, Callable[[], Any]] = {name: called(piece, batch) for name, piece in pieces.items()}
        distances: dict[str, dict[str, float]] = {name: {} for name in pieces}
        for name, piece in pieces.items():
            if piece.is_float:
                continue
            content, ours = onnx_file(piece, batch), calls[name]()
            for peer in self.names:
                call = PEERS[peer](content, inputs(piece, batch), self.threads)
                calls[f"{peer} {name}"] = call
                distances[name][peer] = distance(ours, call())
        timed = in_turns(calls, pieces, f"peers b{batch}", self.seconds, self.rest)
        return {name: self._numbers(name, timed) | {"distance": distances[name]} for name in pieces}

    def _numbers(self, name: str, timed: Mapping[str, Timed]) -> dict[str, Any]:
        own = timed[name]
        numbers: dict[str, Any] = {"latency": {RUNTIME: own.kept}}
        if name == FLOAT:
            return numbers
        takes = {FLOAT: ratio(timed[FLOAT].times, own.times)}
        for peer in self.names:
            numbers["latency"][peer] = timed[f"{peer} {name}"].kept
            best = min(
                (each for key, each in timed.items() if key.startswith(f"{peer} ")), key=lambda t: t.times.median
            )
            takes[peer] = ratio(best.times, own.times)
        return numbers | {"peer_takes": {peer: round(value, 4) for peer, value in takes.items()}}


def onnx_file(piece: Piece, batch: int) -> bytes:
    """Returns what `lowbit.export` writes for ONNX Runtime and OpenVINO, without the rest of a bundle.

    Args:
        piece: whose function, plan and packed parameters are exported, its state fixed.
        batch: that the file is for.

    Raises:
        ImportError: if onnx is not installed.
        ValueError: for an operation without an ONNX form.
    """
    fn, plan, qparams = piece.fn, piece.plan, piece.qparams
    call = signature.read_call(fn, (piece.state, *inputs(piece, batch)), (0,), {})
    shapes = jax.eval_shape(lambda *leaves: lb.execute(fn, plan)(qparams, *call.arguments(leaves)), *call.leaves)
    outputs = signature.described(signature.output_names(shapes), jax.tree.leaves(shapes))
    lowered = forms.Lowered(
        fn, plan, qparams, call, fn, signature.described(call.names, call.leaves), outputs, (), (),
        has_integer_io=False, name="whole", version=stablehlo.VERSION,
    )  # fmt: skip
    (content,) = forms.write_form("onnx", lowered).values()
    assert isinstance(content, bytes)
    return content


def distance(ours: Any, theirs: Sequence[np.ndarray]) -> float:
    """Returns the largest difference of any output, in parts of the largest value of ours."""
    pairs = [(np.asarray(a, np.float64), np.asarray(b)) for a, b in zip(jax.tree.leaves(ours), theirs, strict=True)]
    return max(float(np.max(np.abs(a - b)) / max(np.max(np.abs(a)), np.finfo(np.float32).tiny)) for a, b in pairs)


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

    Its package for telemetry, which it imports where it finds it and which forks, is kept out.

    Args:
        model: an ONNX file.
        inputs: of the call.
        threads: that it uses.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType] - Python's way to say: not there
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
_SAID = {"onnxruntime": "ORT", "openvino": "OpenVINO"}
