"""IREE on this machine, as native code and portable bytecode, and as 64-bit Arm under an emulator."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lowbit.export import iree
from lowbit.export.installed import tools_folder
from lowbit.export.reading import Bundle
from lowbit.targets.table import TARGETS

from . import Inputs, Ran, Run
from .c import called

_EMULATOR = ("qemu-aarch64", "-cpu", "cortex-a76", "-L", "/usr/aarch64-linux-gnu")


def run_on_aarch64(compiled: bytes, args: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Returns the flat results of a module compiled for ``aarch64``, run by IREE's own program under an emulator.

    Args:
        compiled: from `lowbit.export.iree.compile_artifact`.
        args: flat inputs.
        count: of results.

    Raises:
        ValueError: with what the program said, where it fails.
    """
    (program,) = TARGETS["iree-aarch64"].files
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "model.vmfb").write_bytes(compiled)
        for i, x in enumerate(args):
            np.save(folder / f"x{i}.npy", np.asarray(x, order="C"))
        given = [f"--input=@x{i}.npy" for i in range(len(args))]
        made = [f"y{i}.npy" for i in range(count)]
        flags = ["--module=model.vmfb", "--device=local-sync", "--function=main", *given]
        command = [*_EMULATOR, str(tools_folder() / program), *flags, *(f"--output=@{name}" for name in made)]
        called(command, folder)
        return [np.load(folder / name) for name in made]


_EMULATED = 8
"""Calls that are made of an emulator, which starts anew for each."""


def on_aarch64(bundle: Bundle, artifact: bytes, inputs: Inputs) -> Ran:
    """Returns what 64-bit Arm makes of an artifact with the bundle's signature, of the first calls."""
    compiled = iree.compile_artifact(artifact, machine="aarch64")
    count = len(bundle.manifest["outputs"])
    outputs = [run_on_aarch64(compiled, case, count) for case in inputs[:_EMULATED]]
    return Ran(outputs, len(compiled), constants=iree.constant_bytes(compiled))


def on_host(artifact: bytes, inputs: Inputs, *, backend: str = "llvm-cpu") -> Ran:
    """Returns what IREE makes of an artifact on this machine."""
    compiled = iree.compile_artifact(artifact, backend=backend)
    call = iree.loaded(compiled)
    return Ran([call(case) for case in inputs], len(compiled), constants=iree.constant_bytes(compiled))


def _on(backend: str) -> Run:
    def run(bundle: Bundle, inputs: Inputs) -> Ran:
        return on_host(bundle.artifact, inputs, backend=backend)

    return run


def _aarch64(bundle: Bundle, inputs: Inputs) -> Ran:
    return on_aarch64(bundle, bundle.artifact, inputs)


RUN: dict[str, Run] = {"iree": _on("llvm-cpu"), "iree-vmvx": _on("vmvx"), "iree-aarch64": _aarch64}
