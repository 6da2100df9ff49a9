"""LiteRT, TFLite-Micro and Vela's report, each in a process of its own."""

import importlib
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.export.litert import work
from lowbit.export.litert.audit import Contents
from lowbit.export.litert.write import CONTENTS, MODEL
from lowbit.export.reading import Bundle
from lowbit.export.runners import Inputs, Ran, Run

ACCELERATOR = "ethos-u55-128"
"""What Vela compiles for: the smallest common Ethos-U with 128 multipliers."""


_FOREIGN = re.compile("CUSTOM|DELEGATE|PLACEHOLDER_FOR_GREATER_OP_CODES|STABLEHLO_.*")
"""Operators whose code is outside the runtime, or that the converter leaves only where it fails."""


def checked(data: bytes) -> bytes:
    """Returns a LiteRT file as it is.

    Raises:
        ValueError: if it is none, or one of its operators, in whatever subgraph, is not the runtime's own.
    """
    tflite: Any = importlib.import_module("tflite")
    names = {code: name for name, code in vars(tflite.BuiltinOperator).items() if not name.startswith("_")}
    try:
        model = tflite.Model.GetRootAs(data, 0)
        is_one = bool(tflite.Model.ModelBufferHasIdentifier(data, 0)) and model.OperatorCodesLength() < len(data)
        codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength() if is_one else 0)]
        # Readers take the larger of the two: the older field has a byte.
        operators = [(max(c.BuiltinCode(), c.DeprecatedBuiltinCode()), c.CustomCode()) for c in codes]
    except Exception:  # noqa: BLE001 - a table that points outside of the file raises whatever the reader met
        is_one, operators = False, []
    if not is_one:
        raise ValueError("this is no LiteRT file")
    for code, custom in operators:
        name = names.get(code, f"operator {code}")
        if custom or code not in names or _FOREIGN.fullmatch(name):
            called = f"{name} {custom.decode(errors='replace')!r}" if custom else name
            raise ValueError(f"it calls {called}, which lowbit does not write: not run")
    return data


def in_its_process(
    data: bytes, count: int, inputs: Inputs, command: str, *more: str, name: str = MODEL, what: str
) -> tuple[list[list[np.ndarray]], str]:
    """Returns the flat results of a runtime, of every call, and what it said.

    Args:
        data: the model's file, checked.
        count: of results.
        inputs: flat, of every call.
        command: of `lowbit.export.litert.worker`.
        more: its further arguments.
        name: of the file, by whose ending some tools know what it is.
        what: the runtime's name, for errors.

    Raises:
        ValueError: with what the runtime said, where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        arrays = {f"case{n}_{i}": x for n, case in enumerate(inputs) for i, x in enumerate(case)}
        np.savez(given, **arrays)  # pyright: ignore[reportArgumentType] - numpy's stub takes no such keywords
        model = Path(folder, Path(name).name)
        model.write_bytes(data)
        said = work(command, str(model), str(given), str(answer), str(count), *more, what=what)
        with np.load(answer) as loaded:
            return [[loaded[f"case{n}_{i}"] for i in range(count)] for n in range(len(inputs))], said


def _contents(bundle: Bundle) -> Contents:
    return Contents.of(bundle.file(CONTENTS).decode())


def _size(bundle: Bundle) -> int:
    return bundle.manifest["files"][MODEL]["bytes"]


def _litert(bundle: Bundle, inputs: Inputs) -> Ran:
    data, count = checked(bundle.file(MODEL)), len(bundle.manifest["outputs"])
    outputs, _ = in_its_process(data, count, inputs, "litert", what="LiteRT")
    contents = _contents(bundle)
    floats = sum(op.is_float for op in contents.operators)
    measured = {"kernels": float(len(contents.operators)), "float_kernels": float(floats)}
    return Ran(outputs, _size(bundle), contents.stored, measured)


def _tflm(bundle: Bundle, inputs: Inputs) -> Ran:
    if floats := _contents(
        bundle
    ).float_operators:  # per-channel weights, dequantized there, come out wrong, in silence
        raise ValueError(f"this model computes {', '.join(floats)} in floats: TFLite-Micro is not asked to")
    data, count = checked(bundle.file(MODEL)), len(bundle.manifest["outputs"])
    outputs, said = in_its_process(data, count, inputs, "tflm", what="TFLite-Micro")
    arena = re.search(r"Arena allocation total (\d+) bytes", said)
    measured = {"arena_bytes": float(arena[1])} if arena else {}
    return Ran(outputs, _size(bundle), _contents(bundle).stored, measured)


_REPORT = {
    "npu_operators": (r"NPU operators = (\d+)", 1),
    "cpu_operators": (r"CPU operators = (\d+)", 1),
    "sram_bytes": (r"Total SRAM used\s+([\d.]+) KiB", 1024),
    "flash_bytes": (r"Total Off-chip Flash used\s+([\d.]+) KiB", 1024),
    "macs": (r"Neural network macs\s+(\d+)", 1),
}


def _vela(bundle: Bundle, inputs: Inputs) -> Ran:
    del inputs  # a compiler's report: nothing runs
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, Path(MODEL).name)
        model.write_bytes(checked(bundle.file(MODEL)))
        said = work("vela", str(model), folder, ACCELERATOR, what="Vela")
    numbers = {name: (re.search(pattern, said), unit) for name, (pattern, unit) in _REPORT.items()}
    measured = {name: float(match[1]) * unit for name, (match, unit) in numbers.items() if match}
    if "npu_operators" not in measured:
        raise ValueError(f"Vela printed no summary that this version of lowbit reads: {said.strip()[-200:]}")
    return Ran(None, _size(bundle), _contents(bundle).stored, measured)


RUN: dict[str, Run] = {"litert": _litert, "tflm": _tflm, "vela": _vela}
